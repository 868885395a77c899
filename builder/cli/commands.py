"""The commands of `build`: what each takes, does and is called like. Help, completion and the reference are made of
this table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """``takes``: the words after its name, an optional one in brackets; ``summary``: a line; ``page``: what its page
    says beyond that; ``options``: the groups of options that it reads (arguments.parser has them)."""

    takes: str
    summary: str
    page: str
    examples: tuple[str, ...]
    options: tuple[str, ...] = ()


_RUNS = ("running",)  # commands that build first

COMMANDS: Mapping[str, Command] = {
    "build": Command(
        "",
        "bring a recipe up to date (the default)",
        "Composes the recipe from choices (group=choice) and keys (key=value), runs the steps that are stale, and puts "
        "the result into dist/<name>/. With -m it builds every combination of a,b,c values in one graph.",
        (
            "build",
            "build model=auto model.source=hf://org/name quant=q4f16_1 target=cpu",
            "build -m quant=q4f16_1,q8f16_1 target=cpu,webgpu",
            "build recipe=demo",
            "build --locked recipe=demo",
        ),
        _RUNS,
    ),
    "plan": Command(
        "",
        "what would run and why; runs nothing",
        "Also says how much memory a run takes and how many bits a weight has. A sweep (-m) is shown as a matrix.",
        ("build plan model.context_window_size=512", "build plan -m quant=q4f16_1,q8f16_1 --steps"),
        ("plan", *_RUNS),
    ),
    "why": Command(
        "STEP",
        "the parts of a step's key, now and last time",
        "A step is named as `build plan` names it; of a fan-out one part (quantize[0]). For lower it also says which "
        "kernel each operator got, and why.",
        ("build why lower", "build why 'quantize[0]' quant.method=mse"),
    ),
    "graph": Command(
        "",
        "draw the steps as text, Mermaid and SVG",
        "The text goes to the screen, the files to dist.path or to --out.",
        ("build graph", "build graph --out drawings"),
        ("graph",),
    ),
    "lower": Command(
        "",
        "write down what each pass and kernel became",
        "Compiles the library of one recipe and writes the graph after each pass, the TIR, source and machine code of "
        "every kernel, and which schedule and tile each operator got.",
        ("build lower --dump DIR",),
        ("lower",),
    ),
    "generate": Command(
        '[DIR] "PROMPT"',
        "bring the recipe up to date and stream text from it",
        "Of a folder that was built (DIR) nothing is planned. A chat model answers the prompt through its chat "
        "template; another one, or --plain, continues it.",
        ('build generate "The function returns"', 'build generate "The function returns" --temperature 0 quant=q0f32',
         'build generate dist/demo-q4f16_1-cpu "The function returns"'),
        ("generate", *_RUNS),
    ),
    "bench": Command(
        "",
        "tokens/s, time to the first token, memory, load time",
        "Brings the recipe up to date and measures it on this machine. What was measured is kept; --again measures "
        "anew.",
        ("build bench", "build bench -m quant=q4f16_1,q8f16_1"),
        ("bench", *_RUNS),
    ),
    "lock": Command(
        "",
        "write down all that a build is made of",
        "Brings the recipe up to date and writes recipes/NAME.lock.yaml. `build --locked` then builds exactly that, or "
        "says what moved.",
        ("build lock recipe=demo", "build lock --check recipe=demo"),
        ("lock", *_RUNS),
    ),
    "diff": Command(
        "A B",
        "what differs between two recipes, locks or folders",
        "Choices, steps, tensors, size and quality. Overrides on the line are of both.",
        ("build diff dist/a dist/b",),
    ),
    "verify-provenance": Command(
        "DIR",
        "check that a folder is what its build.json says",
        "Hashes every file. --key also checks who signed it, --against what it should equal.",
        ("build verify-provenance dist/a", "build verify-provenance dist/a --key public.pem"),
        ("verify-provenance",),
    ),
    "push": Command(
        "",
        "upload results to the shared store",
        "Builds nothing: what this machine has of the recipe goes to store.remote.",
        ("build push recipe=demo store.remote=s3://bucket/folder",),
    ),
    "pull": Command(
        "",
        "download results from the shared store",
        "Builds nothing: what store.remote has of the recipe goes into its folder.",
        ("build pull recipe=demo store.remote=s3://bucket/folder",),
    ),
    "gc": Command(
        "",
        "free what nothing refers to (only says so without --yes)",
        "Results that are whole go with --max-age or --max-size.",
        ("build gc", "build gc --max-age 30d --yes", "build gc --remote --max-age 90d"),
        ("gc",),
    ),
    "doctor": Command(
        "",
        "tools and devices found, and what missing ones are for",
        "--store checks every byte of the store too, --repair drops what is damaged.",
        ("build doctor", "build doctor --store"),
        ("doctor",),
    ),
    "list": Command(
        "[GROUP]",
        "every choice with one line",
        "Your own ./conf and ./recipes are among them.",
        ("build list", "build list quant"),
    ),
    "help": Command(
        "[COMMAND]",
        "this page; a page on a command; options: every option",
        "`build COMMAND --help` is the same.",
        ("build help bench", "build help options"),
    ),
}  # fmt: skip
WITHOUT_RECIPE = frozenset({"help", "list"})  # that read no overrides
FOLDER_COMMANDS = frozenset({"diff", "verify-provenance"})  # whose words may be folders with a = in their names
