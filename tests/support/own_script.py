"""A script as a user writes it: a model, a data set and a loop of one's own, with plain SGD, under torchrun.

Steps take their time until the file that PACED_UNTIL names exists.
"""

import sys

import torch
from support.paced import pause

import elaswave as ew


class Classifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.stack = torch.nn.ModuleList([torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4)])

    def layers(self) -> list[torch.nn.Module]:
        return list(self.stack)

    def loss_sum(self, output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(output, targets[:, 0], reduction="sum")


class Numbers:
    def __len__(self) -> int:
        return 4096

    def sample(self, index: int) -> torch.Tensor:
        x = torch.randint(0, 10, (8,), generator=torch.Generator().manual_seed(index))
        return torch.cat([x, x.sum()[None] % 4])

    def inputs_and_targets(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rows[:, :8].float(), rows[:, 8:]

    def identity(self) -> str:
        return "numbers-1"


def main() -> None:
    config = ew.load_config(None, sys.argv[1:])
    with ew.join(config) as job:
        model = job.pipeline(Classifier(), Numbers())
        optimizer = job.shard(lambda groups: torch.optim.SGD(groups, lr=1e-2), model)
        for attempt in job.attempts():
            with attempt:
                model.forward_backward(attempt.micro_batches)
                optimizer.step()
                pause(attempt.step)


if __name__ == "__main__":
    main()
