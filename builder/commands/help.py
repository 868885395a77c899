"""`build --help`: the commands, the choices there are, the options."""

from __future__ import annotations

from builder.arguments import COMMANDS, Arguments, parser
from builder.commands.jobs import folders_of
from builder.compose import GROUPS, choices_of

EXAMPLES = """\
  build                                              the demo in 4 bits on this CPU
  build model=llama2 model.source=/data/llama-2-7b quant=q4f16_1 target=cpu
  build -m model=demo quant=q0f16,q4f16_1            every combination
  build quant.budget=4.5                             stored bits per weight: rules from measured sensitivity
  build recipe=demo                                  a whole build from recipes/demo.yaml
  build generate "The function returns" quant=q4f32_1
"""


def show(arguments: Arguments) -> int:
    """Prints the page. Hydra's choices come from the folders themselves, so a user's own are among them."""
    folders = folders_of(arguments)
    print("Turns a Hugging Face checkpoint into a compiled language model, and redoes only what changed.\n")
    print("usage: build [command] [group=choice ...] [key=value ...] [options]\n\ncommands:")
    for name, text in COMMANDS.items():
        print(f"  {name:<10} {text}")
    print("\nchoices (build list says what each is):")
    for group in GROUPS:
        print(f"  {group + '=':<10} {', '.join(choices_of(group, folders))}")
    print("\nevery key of a recipe may be set too: model.context_window_size=1024 (build --cfg job shows them all)")
    print(f"\nexamples:\n{EXAMPLES}")
    pages = parser()
    for section in pages._action_groups[2:]:
        formatter = pages._get_formatter()
        formatter.start_section(section.title)
        formatter.add_arguments(section._group_actions)
        formatter.end_section()
        print(formatter.format_help())
    return 0
