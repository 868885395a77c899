"""What kernels are written with. Nothing else imports TVM's script builder: TVM is moving it."""

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

__all__ = ["IRBuilder", "T"]
