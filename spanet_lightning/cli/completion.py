"""Tab completion for bash and zsh: prints what to put into the shell's start-up file.

  spanet completion bash >> ~/.bashrc
  spanet completion zsh  >> ~/.zshrc

Commands, options, keys of a configuration and the names of packaged configurations are completed.
"""

from __future__ import annotations

import argparse

_BASH = r"""
_spanet_complete() {
  local IFS=$'\n' words=("${COMP_WORDS[@]:1:COMP_CWORD}")
  COMPREPLY=($("$1" --complete "${words[@]}" 2>/dev/null))
  [[ ${#COMPREPLY[@]} == 0 ]] && COMPREPLY=($(compgen -f -- "${words[-1]}"))
}
complete -o nospace -F _spanet_complete spanet lightning
""".strip()
_ZSH = "autoload -U +X compinit && compinit; autoload -U +X bashcompinit && bashcompinit\n" + _BASH


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `spanet completion`."""
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell")


def run(args: argparse.Namespace) -> None:
    """Print the lines."""
    print(_BASH if args.shell == "bash" else _ZSH)
