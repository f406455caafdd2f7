"""`python -m benchmarks COMMAND`: measurements of bnfold, side by side with its peers."""

from __future__ import annotations

from importlib.util import find_spec

import click

from .check import check_command
from .faults import faults_command
from .folding import fold_command
from .latency import latency_command
from .models import models_command
from .peers import peers_command
from .statistics import statistics_command


@click.group()
def main() -> None:
    """Measurements of bnfold, side by side with its peers."""


main.add_command(fold_command)
main.add_command(models_command)
main.add_command(check_command)
main.add_command(faults_command)
main.add_command(peers_command)
main.add_command(latency_command)
main.add_command(statistics_command)
if find_spec("torch") is not None:
    from .torch_modules import torch_command

    main.add_command(torch_command)

if __name__ == "__main__":
    main()
