"""One rank of several, in a process of its own: python -m llm_build.runtime.rank (started by builder/runtime/ranks.py)

Arguments: number of this rank, count, file descriptors of the channel, of the pipe that is watched and of the mailbox,
seconds before it sleeps, folder where the ranks meet, library. A message is a tuple: "load", files, sequences; or
"memory"; or "poll", the mailbox; or a method of LoadedModel and its arguments. Answers are ("answer" | "error",
content). All ranks say that they have met, what they loaded, how much memory they have and what goes wrong; else rank 0
answers.
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
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from llm_build.core.errors import BuildError, StepError
from llm_build.runtime.mailbox import POLLS, CommandMailbox
from llm_build.runtime.process_memory import process_memory

FUNCTIONS = ("add", "remove", "rewind", "prefill", "verify", "decode", "decode_batch")


def main() -> None:
    faulthandler.enable()  # where this rank was when it crashed, or was given up: in its log
    number, count, channel, watched, mailbox = (int(word) for word in sys.argv[1:6])
    patience_s, folder, library = float(sys.argv[6]), Path(sys.argv[7]), Path(sys.argv[8])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one decides
    threading.Thread(target=watch, args=(watched, folder), daemon=True).start()
    pipe = Connection(channel)
    try:
        _serve(CommandReceiver(pipe, CommandMailbox(mailbox), number, patience_s), number, count, folder, library)
    except EOFError:
        return
    except BuildError as error:
        pipe.send(("error", error))
    except Exception as error:
        traceback.print_exc()
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        pipe.send(("error", StepError(f"rank {number} of {count}: {last[0]}")))
    threading.Event().wait()  # to be ended, so that the others do not see this rank end before its error was read


def watch(descriptor: int, folder: Path) -> None:
    """End this process when the one that started it is gone, whatever else it is doing."""
    os.read(descriptor, 1)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


class CommandReceiver:
    """Gives a rank its commands in the order in which they were sent, through the pipe and the mailbox."""

    def __init__(self, pipe: Connection, mailbox: CommandMailbox, number: int, patience_s: float) -> None:
        self.pipe, self.mailbox, self._number, self._patience_s = pipe, mailbox, number, patience_s
        self._received = 0  # messages through the pipe; but for "poll", which goes to some ranks only

    def message(self) -> Any:
        """The next one. The one after a token comes soon, and a process that sleeps takes 50 us to wake up."""
        until = time.perf_counter() + self._patience_s
        while time.perf_counter() < until and not select.select((self.pipe,), (), (), 0)[0]:
            if self.mailbox.has_command(POLLS):
                return self._first()
        self.mailbox.set_polling(self._number, False)
        try:  # what was posted before that was seen is read here
            return self._first()
        finally:
            self.mailbox.set_polling(self._number, self._patience_s > 0)

    def is_due(self) -> bool:
        """Whether there is a command in the mailbox, and all messages that come before it were received."""
        return self.mailbox.has_command() and self.mailbox.messages_before() == self._received

    def _first(self) -> Any:
        if self.is_due():
            return ("poll",)
        message = self.pipe.recv()
        self._received += message[0] != "poll"
        return message


def _serve(receiver: CommandReceiver, number: int, count: int, folder: Path, library: Path) -> None:
    from llm_build.runtime import collectives
    from llm_build.runtime.device import device_of
    from llm_build.runtime.loaded_model import load_model
    from llm_build.runtime.mailbox import DiscardSink, SharedMemorySink

    device, pipe, mailbox = device_of(library, number), receiver.pipe, receiver.mailbox
    network = collectives.join(number, count, folder, device)
    sink = DiscardSink(device) if number else SharedMemorySink(device, mailbox)
    pipe.send(("answer", None))
    model: Any = None
    while True:
        name, *arguments = receiver.message()
        if name == "load":
            model = None  # what was loaded before makes room
            files, sequences = arguments
            model = load_model({name: Path(path) for name, path in files.items()}, sequences, number, count, sink)
            if not network.enable_peer_sums(model.metadata, model.function):
                model.decode_as_batch()
            pipe.send(("answer", model.metadata))
        elif name == "memory":
            pipe.send(("answer", process_memory()))
        elif name != "poll":
            answer = call(model, name, arguments)
            if number == 0:
                pipe.send(("answer", answer))
        elif receiver.is_due():
            seq, token = mailbox.take()
            call(model, "decode", (seq, token))
            if number == 0:
                mailbox.answer()
            model.prepare(seq)


def call(model: Any, name: str, arguments: Sequence[Any]) -> Any:
    assert name in FUNCTIONS
    return getattr(model, name)(*arguments)


if __name__ == "__main__":
    main()
