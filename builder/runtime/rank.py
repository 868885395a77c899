"""One rank of several, in a process of its own: python -m builder.runtime.rank (started by builder/runtime/ranks.py)

Arguments: number of this rank, count, file descriptors of the channel and of the pipe that is watched, folder where
the ranks meet, library. A message is a tuple: "load", files, sequences; or "memory"; or a function of calls.Calls and
its arguments. Answers are ("answer" | "error", content). All ranks say that they have met, what they loaded, how much
memory they have and what goes wrong; else rank 0 answers.
"""

from __future__ import annotations

import faulthandler
import os
import select
import shutil
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from builder.core.errors import BuildError, StepError
from builder.runtime.ranks import LOGITS

SPIN_S = 0.001  # on a GPU, where a core for each rank is little
FUNCTIONS = ("add", "remove", "rewind", "prefill", "verify", "decode", "decode_batch")


def main() -> None:
    faulthandler.enable()  # where this rank was when it crashed, or was given up: in its log
    number, count, channel, watched = (int(word) for word in sys.argv[1:5])
    folder, library = Path(sys.argv[5]), Path(sys.argv[6])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one decides
    threading.Thread(target=watch, args=(watched, folder), daemon=True).start()
    pipe = Connection(channel)
    try:
        serve(pipe, number, count, folder, library)
    except EOFError:
        return
    except BuildError as error:
        pipe.send(("error", error))
    except Exception as error:
        traceback.print_exc()
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        pipe.send(("error", StepError(f"rank {number} of {count}: {last[0]}")))
    threading.Event().wait()  # to be ended, so that the others do not see this rank go before it has been heard


def watch(descriptor: int, folder: Path) -> None:
    """End this process when the one that started it is gone, whatever else it is doing."""
    os.read(descriptor, 1)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def serve(pipe: Connection, number: int, count: int, folder: Path, library: Path) -> None:
    from builder.runtime import calls, collectives
    from builder.runtime.device import device_of

    device = device_of(library, number)
    network = collectives.join(number, count, folder, device)
    pipe.send(("answer", None))
    model: Any = None
    logits = np.memmap(folder / LOGITS, np.float32, "r+")
    while True:
        name, *arguments = heard(pipe, 0.0 if device.kind == "cpu" else SPIN_S)
        if name == "load":
            model = None  # what was loaded before makes room
            files, sequences = arguments
            model = calls.load({name: Path(path) for name, path in files.items()}, sequences, number, count)
            network.quicken(model.metadata)
            pipe.send(("answer", model.metadata))
        elif name == "memory":
            pipe.send(("answer", memory()))
        else:
            answer = run(model, name, arguments)
            if number == 0:
                pipe.send(("answer", shared(answer, logits)))


def heard(pipe: Connection, patience_s: float) -> Any:
    """The next message. The one after a token comes soon, and a process that sleeps takes 50 us to wake up."""
    until = time.perf_counter() + patience_s
    while time.perf_counter() < until and not select.select((pipe,), (), (), 0)[0]:
        pass
    return pipe.recv()


def shared(answer: Any, logits: np.ndarray[Any, Any]) -> Any:
    """The shape of logits that fit into the memory that is shared, or else the answer itself."""
    if answer is None or answer.size > logits.size:
        return answer
    logits[: answer.size] = answer.reshape(-1)
    return answer.shape


def run(model: Any, name: str, arguments: list[Any]) -> Any:
    assert name in FUNCTIONS
    return getattr(model, name)(*arguments)


def memory() -> dict[str, int | None]:
    from builder.runtime.measured import process_memory

    return process_memory()


if __name__ == "__main__":
    main()
