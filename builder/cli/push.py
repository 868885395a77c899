"""`build push`: upload what this machine has of a recipe's results, also when it was there before. Builds nothing."""

from __future__ import annotations

import json
import sys

from builder.app.request import Job, folders_of, is_sweep, job_of, merge
from builder.app.share import publish, shared_of
from builder.cli.arguments import Arguments
from builder.cli.build import events_to, listener
from builder.core.examine import Verdict, examine
from builder.core.record import Record


def show(arguments: Arguments) -> int:
    """1 when some results are not here. Raises BuildError when the shared store is away or refuses."""
    if is_sweep(arguments):
        from builder.app.sweep import sweep

        return sweep(arguments, lambda jobs: push(arguments, merge(jobs, folders_of(arguments))))
    return push(arguments, job_of(arguments))


def push(arguments: Arguments, job: Job) -> int:
    store = shared_of(job.store, writes=True)
    verdicts = examine(job.plan, store)
    here = {verdict.key: verdict.record for verdict in verdicts.values() if verdict.record}
    lacking = [verdict.step.name for verdict in verdicts.values() if not verdict.record]
    with listener(events_to(arguments), arguments.options.quiet) as listen:
        for record in here.values():
            store.offer(record)
        store.drain(listen)
        publish(job, artifacts(job, verdicts), listen)
    if trouble := store.connection.trouble():
        raise trouble
    sent = store.uploads.lane.moved
    if arguments.options.json:
        json.dump({"results": len(here), "uploaded_bytes": sent, "not_here": lacking}, sys.stdout, indent=1)
        print()
    else:
        from builder.core.units import format_bytes

        print(f"{len(here)} results are in {store.location.url}; {format_bytes(sent)} were uploaded")
        if lacking:
            more = f" and {len(lacking) - 8} more" if len(lacking) > 8 else ""
            print(f"not built here: {', '.join(lacking[:8])}{more}\n  next: build, with the same overrides")
    return 1 if lacking else 0


def artifacts(job: Job, verdicts: dict[str, Verdict]) -> dict[str, Record]:
    """The record of each recipe's artifact that is here, by name."""
    found = {goal.name: verdicts.get(goal.artifact) for goal in job.plan.goals if goal.artifact}
    return {name: verdict.record for name, verdict in found.items() if verdict and verdict.record}
