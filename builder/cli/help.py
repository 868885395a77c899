"""`build --help`: the commands, the choices there are, the options."""

from __future__ import annotations

from shutil import get_terminal_size
from textwrap import fill

from llm_build.app.request import folders_of
from llm_build.cli.arguments import COMMANDS, Arguments, parser
from llm_build.config.choices import GROUPS, choices_of

_EXAMPLES = """\
  build                                              the demo in 4 bits on this CPU
  build model=llama2 model.source=/data/llama-2-7b quant=q4f16_1 target=cpu
  build -m model=demo quant=q0f16,q4f16_1            every combination; sweep.exclude=[{quant:"e4m3*",target:webgpu}]
  build quant.budget=4.5                             stored bits per weight: rules from measured sensitivity
  build model=llama2_70b target=h100 target.gpus=2   one model over two GPUs
  build recipe=phone model.source=/data/mine         a whole build from recipes/phone.yaml
  build --locked recipe=phone                        exactly what recipes/phone.lock.yaml says (build lock recipe=phone)
  build pull recipe=phone store.remote=s3://bucket   the results that others made of it
  build generate "The function returns" quant=q4f32_1
"""


def show(arguments: Arguments) -> int:
    """Prints the page. Hydra's choices come from the folders themselves, so a user's own are among them."""
    folders, width = folders_of(arguments.build), get_terminal_size((100, 24)).columns
    print("Turns a Hugging Face checkpoint into a compiled language model, and redoes only what changed.\n")
    print("usage: build [command] [group=choice ...] [key=value ...] [options]\n\ncommands:")
    for name, text in COMMANDS.items():
        print(f"  {name:<17} {text}")
    print("\nchoices (build list says what each is):")
    for group in GROUPS:
        names = ", ".join(choices_of(group, folders))
        print(
            fill(
                names, width, initial_indent=f"  {group + '=':<10} ", subsequent_indent=" " * 13, break_on_hyphens=False
            )
        )
    print("\nevery key of a recipe may be set too: model.context_window_size=1024 (build --cfg job shows them all)")
    print(f"\nexamples:\n{_EXAMPLES}")
    pages = parser()
    for section in pages._action_groups[2:]:
        formatter = pages._get_formatter()
        formatter.start_section(section.title)
        formatter.add_arguments(section._group_actions)
        formatter.end_section()
        print(formatter.format_help())
    return 0
