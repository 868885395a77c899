"""A toy recipe with the shape of a real one: source -> tensors -> list of shards -> shards -> package -> check.

`python -m tests.core.toy STORE [key=value ...]` builds it with worker processes and prints one JSON line."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_build.core.errors import BuildError, StepError, UserError
from llm_build.core.events import Event
from llm_build.core.plan import Goal, Plan
from llm_build.core.step import Input, Resources, Step
from llm_build.core.step_io import File, Out

Inputs = Mapping[str, Any]


def fetch(params: Mapping[str, Any], inputs: Inputs, out: Out) -> None:
    """Slices of a watched file: one tensor of 1000 bytes each."""
    from llm_build.core.digest import digest_of_bytes

    data = inputs["watch"]["source.bin"].path.read_bytes()
    for index in range(len(data) // 1000):
        piece = data[index * 1000 : index * 1000 + 1000]
        out.slice(f"tensor/t{index}", digest_of_bytes(piece), 1000, "watch:source.bin", index * 1000)
    out.path("file/config.json").write_text("{}")


def shard(params: Mapping[str, Any], inputs: Inputs, out: Out) -> None:
    items = [
        {"name": str(i), "params": {"index": i}, "inputs": {"weight": ["tensors", f"tensor/t{i}"]}}
        for i in range(params["shards"])
    ]
    out.path("shards.json").write_text(json.dumps({"items": items}))


def quantize(params: Mapping[str, Any], inputs: Inputs, out: Out) -> None:
    weight: File = inputs["weight"]
    with open(weight.path, "rb") as file:
        file.seek(weight.offset)
        data = file.read(weight.nbytes)
    for done in range(1, 4):
        time.sleep(params["sleep_s"] / 3)
        out.progress(done, 3, "bytes")
    out.path(f"shard_{params['index']}.bin").write_bytes(data[::-1] * params["repeat"])


def package(params: Mapping[str, Any], inputs: Inputs, out: Out) -> None:
    for name, file in inputs["shards"].items():
        out.link(name.partition("/")[2], file)
    out.link("config.json", inputs["config"])
    out.path("card/README.md").write_text(f"{len(inputs['shards'])} shards\n")
    out.fact("shards", len(inputs["shards"]))


def check(params: Mapping[str, Any], inputs: Inputs, out: Out) -> None:
    if sum(file.nbytes for file in inputs["all"].values()) > params["most"]:
        raise StepError("too many bytes")


def misbehave(params: Mapping[str, Any], inputs: Inputs, out: Out) -> None:
    """Ends in the way that ``params["how"]`` says."""
    print("about to", params["how"], flush=True)
    match params["how"]:
        case "raise":
            raise ZeroDivisionError("one by zero")
        case "user":
            raise UserError("the tensor is wrong", "mend it")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(7)
        case "forget":
            out.path("promised")
        case "fill":
            out.path("big").write_bytes(bytes(params["nbytes"]))
        case "touch":
            os.utime(inputs["watch"]["source.bin"].path)
            out.path("done").write_text("")
        case "warn":
            out.warn("be careful")
            out.path("done").write_text("")
        case "slice":
            out.path("whole").write_bytes(b"0123456789")
            out.slice("part", "blake3:0a27", 4, "output:whole", 3)
        case "link":
            out.link("copied", inputs["part"])
            out.link("linked", inputs["whole"])
        case "environment":
            out.path("done").write_text(json.dumps([os.environ["OMP_NUM_THREADS"], out.threads, os.getpid()]))


def overflow(params: Mapping[str, Any], inputs: Inputs, out: Out) -> None:
    """A measurement that is not finite."""
    out.fact("figures", {"kl": float("inf"), "row": [float("nan"), 1.5]})
    out.path("done").write_text("")


def victim(params: Mapping[str, Any], inputs: Inputs, out: Out) -> None:
    """In its first life killed by ``params["signal"]`` while it writes; a mark per life goes to ``params["lives"]``."""
    with open(params["lives"], "a") as lives:
        lives.write("x")
    half = out.path("half")
    names = sorted(path.name for path in half.parent.iterdir())
    half.write_text("half")
    if Path(params["lives"]).read_text() == "x":
        os.kill(os.getpid(), params["signal"])
    out.path("done").write_text(json.dumps(names))


def gpu(params: Mapping[str, Any], inputs: Inputs, out: Out) -> None:
    """Writes which GPUs it sees, and ends when ``params["together"]`` such steps run."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    folder = Path(params["folder"])
    (folder / params["name"]).touch()
    while len(list(folder.iterdir())) < params["together"]:
        time.sleep(0.01)
    out.path("done").write_text(seen)


def step_of(
    id_: str,
    name: str,
    function: str,
    params: Mapping[str, Any],
    inputs: Mapping[str, Input] | None = None,
    **more: Any,
) -> Step:
    """A step under an id that a test can spell."""
    return Step(name, function, params, inputs or {}, id=id_, **more)


def plan(source: Path, shards: int = 4, sleep_s: float = 0.0, repeat: int = 3, most: int = 10**9) -> Plan:
    steps = [
        step_of("f", "fetch", "tests.core.toy:fetch", {}, watch={"source.bin": str(source)}),
        step_of("s", "shard", "tests.core.toy:shard", {"shards": shards}),
        step_of(
            "q",
            "quantize",
            "tests.core.toy:quantize",
            {"sleep_s": sleep_s, "repeat": repeat},
            {"list": Input("s", "shards.json"), "tensors": Input("f", "tensor/*")},
            expand="list",
        ),
        step_of(
            "p",
            "package",
            "tests.core.toy:package",
            {},
            {"shards": Input("q", "shard_*"), "config": Input("f", "file/config.json")},
        ),
        step_of("c", "check", "tests.core.toy:check", {"most": most}, {"all": Input("p", "*")}, validation=True),
    ]
    return Plan({step.id: step for step in steps}, (Goal("toy", tuple(step.id for step in steps), "p"),))


def single(how: str, function: str = "misbehave", **more: Any) -> Plan:
    """A plan of one step, ``misbehave`` or another."""
    watch = {"source.bin": more.pop("watch")} if "watch" in more else {}
    resources = Resources(more.pop("cpu", 1))
    step = step_of("m", "lower", f"tests.core.toy:{function}", {"how": how, **more}, watch=watch, resources=resources)
    return Plan({"m": step}, (Goal("toy", ("m",), "m"),))


def write_source(path: Path, tensors: int = 4) -> Path:
    path.write_bytes(b"".join(bytes([65 + index]) * 1000 for index in range(tensors)))
    return path


def tell(event: Event) -> None:
    print(event, file=sys.stderr, flush=True)


def main(store_path: str, *settings: str) -> int:
    from llm_build.app.export import export
    from llm_build.core.filestore import open_store
    from llm_build.core.run import run
    from llm_build.executors.local import LocalExecutor, capacity

    given = {key: json.loads(value) for key, _, value in (setting.partition("=") for setting in settings)}
    store = open_store(Path(store_path))
    workers: int = given.pop("workers", 2)
    dist = given.pop("dist", None)
    try:
        with LocalExecutor(store, capacity(workers)) as executor:
            source = Path(given.pop("source"))
            outcome = run(
                plan(source, **given), store, executor, lambda event: print(event, file=sys.stderr, flush=True)
            )
        if dist and not outcome.failed:
            export(outcome, "toy", store, Path(dist), {"model": "toy"})
    except BuildError as error:
        print(error.message, error.hint, file=sys.stderr)
        return error.exit_code
    print(json.dumps({done.name: done.status for done in outcome.steps.values()}))
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
