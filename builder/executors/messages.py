"""What goes over the pipes between the coordinator and a worker: frames of a 4-byte length and JSON."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

from llm_build.core.errors import BuildError, StepError, UserError
from llm_build.core.record import Output
from llm_build.core.step import Resources
from llm_build.core.step_io import File, InputFiles, Json
from llm_build.core.task import StepResult, StepTask, TaskDone, TaskProgress, TaskReport, TaskWarned

_HEADER = struct.Struct(">I")
_ERRORS: Mapping[str, type[BuildError]] = {"UserError": UserError, "StepError": StepError}


def send(handle: int, message: Json) -> None:
    """Write one frame; BrokenPipeError when the other side is gone."""
    body = json.dumps(message).encode()
    view = memoryview(_HEADER.pack(len(body)) + body)
    while view:
        view = view[os.write(handle, view) :]


class Frames:
    """Puts frames together from whatever arrives."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Json]:
        self._buffer += data
        messages = []
        while len(self._buffer) >= _HEADER.size:
            end = _HEADER.size + _HEADER.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                break
            messages.append(json.loads(self._buffer[_HEADER.size : end]))
            del self._buffer[:end]
        return messages


def task_to_json(task: StepTask) -> Json:
    return {
        "id": task.id,
        "name": task.name,
        "function": task.function,
        "params": task.params,
        "inputs": {port: _files_to_json(files) for port, files in task.inputs.items()},
        "context": task.context,
        "resources": _resources_to_json(task.resources),
        "scratch": str(task.scratch),
        "loads": task.loads,
    }


def task_from_json(fields: Json) -> StepTask:
    inputs: InputFiles = {port: _files_from_json(files) for port, files in fields["inputs"].items()}
    known = {
        **fields,
        "inputs": inputs,
        "resources": Resources(*fields["resources"]),
        "scratch": Path(fields["scratch"]),
    }
    return StepTask(**known)


def _resources_to_json(resources: Resources) -> Json:
    return [resources.cpu, resources.memory_bytes, resources.gpu, dict(resources.custom)]


def _files_to_json(files: File | Mapping[str, File]) -> Json:
    if isinstance(files, File):
        return [str(files.path), files.digest, files.nbytes, files.offset]
    return {name: _files_to_json(file) for name, file in files.items()}


def _files_from_json(fields: Json) -> File | dict[str, File]:
    if isinstance(fields, list):
        return _file(fields)
    return {name: _file(each) for name, each in fields.items()}


def _file(fields: Json) -> File:
    path, digest, nbytes, offset = fields
    return File(Path(path), digest, nbytes, offset)


def report_to_json(report: TaskReport) -> Json:
    if isinstance(report, TaskProgress):
        return {"progress": [report.id, report.done, report.total, report.unit, report.label]}
    if isinstance(report, TaskWarned):
        return {"warned": [report.id, report.message]}
    error, result = report.error, report.result
    return {
        "done": report.id,
        "error": error and {"kind": type(error).__name__, "message": error.message, "hint": error.hint},
        "result": result and _result_to_json(result),
    }


def _result_to_json(result: StepResult) -> Json:
    return {
        "outputs": {name: [o.digest, o.nbytes, o.mtime_ns, o.of, o.offset] for name, o in result.outputs.items()},
        "facts": result.facts,
        "warnings": result.warnings,
        "started": result.started,
        "seconds": result.seconds,
        "peak_memory_bytes": result.peak_memory_bytes,
    }


def report_from_json(fields: Json) -> TaskReport:
    if "progress" in fields:
        return TaskProgress(*fields["progress"])
    if "warned" in fields:
        return TaskWarned(*fields["warned"])
    error = fields["error"] and _ERRORS[fields["error"]["kind"]](fields["error"]["message"], fields["error"]["hint"])
    return TaskDone(fields["done"], fields["result"] and _result_from_json(fields["result"]), error)


def _result_from_json(fields: Json) -> StepResult:
    outputs = {name: Output(*output) for name, output in fields["outputs"].items()}
    return StepResult(**{**fields, "outputs": outputs, "warnings": tuple(fields["warnings"])})
