"""`build lower --dump DIR`: what each pass and each kernel became."""

from __future__ import annotations

import json
from pathlib import Path

from llm_build.app.dump import dump_lowering
from llm_build.app.merge import request_of
from llm_build.cli.arguments import Arguments
from llm_build.cli.output import print_document, relative
from llm_build.core.errors import UserError
from llm_build.core.units import count_of


def show(arguments: Arguments) -> int:
    """Raises UserError for a sweep, and without a folder to write to."""
    if not arguments.options.dump:
        raise UserError("build lower needs a folder to write to", "build lower --dump DIR")
    if arguments.build.multirun:
        raise UserError("a dump is of one recipe, and -m asks for many", "the same with one value of each")
    folder = Path(arguments.options.dump)
    dump_lowering(request_of(arguments.build), folder)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    if arguments.options.json:
        operators = json.loads((folder / "operators.json").read_text("utf-8"))
        print_document({"folder": str(folder), "files": files, "operators": operators})
    else:
        print((folder / "operators.txt").read_text("utf-8"), end="")
        print(f"{count_of(len(files), 'file')} in {relative(folder.absolute())}")
    return 0
