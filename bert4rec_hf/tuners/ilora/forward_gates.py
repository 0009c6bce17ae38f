"""The gate weights of a forward pass, where the layers find them; also when they run again."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Gates = dict[str, tuple[Tensor, ...]]
"""From adapters to what `spread` returns."""


def current_thread() -> int:
    """Its number; a compiler cannot ask, and need not, as its graphs hand the weights on inside."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


class ForwardGates:
    """The gate weights of the forward pass under way; all layers of a model read them here.

    Each thread has its own, so that several can use one model at a time.
    """

    def __init__(self) -> None:
        self._by_thread: dict[int, Gates] = {}

    @property
    def gates(self) -> Gates:
        """Empty where no forward pass is under way."""
        return self._by_thread.get(current_thread(), {})

    @gates.setter
    def gates(self, gates: Gates) -> None:
        if gates:
            self._by_thread[current_thread()] = gates
        else:
            self._by_thread.pop(current_thread(), None)

    @contextmanager
    def holding(self, gates: Gates) -> Iterator[None]:
        """Show the layers these gate weights for a while."""
        self.gates, before = gates, self.gates
        try:
            yield
        finally:
            self.gates = before

    def find(self, adapter: str, shape: torch.Size, layer: str) -> Tensor:
        """The gate weights of the positions that a layer has before it.

        Args:
            adapter: Whose.
            shape: That of its input, but for the last dimension.
            layer: Its name.

        Returns:
            (…, experts)

        Raises:
            RuntimeError: There are none, because the encoder is not running or has another adapter.
            ValueError: Its input is not one row per position.
        """
        if adapter not in self.gates:
            raise RuntimeError(
                f"{layer} has adapter {adapter!r} active, which has no gate weights here; call the "
                "model or its encoder, not a layer of it, and choose adapters by set_adapter"
            )
        for gate in self.gates[adapter]:
            if gate.shape[:-1] == shape:
                return gate
        known = " or ".join(str(tuple(gate.shape[:-1])) for gate in self.gates[adapter])
        raise ValueError(
            f"{layer} got an input of shape {tuple(shape)} and hidden, where the positions of the "
            f"histories have {known}; iLoRA cannot separate the histories there: name it in "
            "exclude_modules"
        )


class GatedCheckpoint:
    """Activation checkpointing under which a layer, run again, sees the gates of its own pass.

    The backward pass runs the layer again when the encoder has long been left, or is under way
    with another batch. The gate weights are therefore handed over as arguments, which also leads
    their gradients the right way where checkpoints are reentrant.
    """

    def __init__(self, checkpoint: Callable, current: ForwardGates):
        self.checkpoint = checkpoint
        self.current = current

    def __call__(self, function: Callable, *args: Any) -> Any:
        gates = self.current.gates
        # A compiler plans the second run itself, from the graph of the first.
        if not gates or torch.compiler.is_compiling():
            return self.checkpoint(function, *args)
        flat = [gate for each in gates.values() for gate in each]
        size = len(flat) // len(gates)

        def run(*args: Any) -> Any:
            args, flat = args[: -size * len(gates)], args[-size * len(gates) :]
            handed = {name: flat[i * size : (i + 1) * size] for i, name in enumerate(gates)}
            with self.current.holding(handed):
                return function(*args)

        return self.checkpoint(run, *args, *flat)
