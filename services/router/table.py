"""The routing table as the controller tells it: a snapshot, then deltas. Pure."""

from __future__ import annotations

from collections.abc import Callable

from chiron.internal.v1 import control_pb2


class EpochGapError(Exception):
    """A delta does not follow the table's epoch; only a new snapshot helps."""


class StaleTermError(Exception):
    """A controller whose term is over has sent a table; the text says which term this router has seen."""


class Table:
    """Models and instances of the last snapshot and the deltas since.

    A controller of another term may not know yet what runs (its store may have been empty): instances that
    its snapshot leaves out are carried on while the router's own evidence says that they serve, until the
    controller lists them, removes them by a delta, or the router drops them.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.term = 0
        self.known = False
        """True once a snapshot has come."""
        self.models: dict[str, control_pb2.RoutedModel] = {}
        self.instances: dict[str, control_pb2.RoutedInstance] = {}
        self.carried: set[str] = set()
        """Ids of instances kept against a snapshot that left them out."""
        self._carried_models: set[str] = set()

    def replace(self, snapshot: control_pb2.RoutingTable, serves: Callable[[str], bool]) -> None:
        """Takes a snapshot.

        Args:
            snapshot: the controller's table.
            serves: tells of an instance id whether the router sees it serve.

        Raises:
            StaleTermError: its term is older than the table's; nothing changes.
        """
        if self.known and snapshot.term < self.term:
            raise StaleTermError(
                f"it is of term {snapshot.term}, and this router holds one of term {self.term}"
            )
        models = {model.name: model for model in snapshot.models}
        instances = {instance.instance_id: instance for instance in snapshot.instances}
        new_term = self.known and snapshot.term != self.term
        candidates = self.instances.keys() if new_term else self.carried
        carried = {key for key in candidates if key not in instances and serves(key)}
        self._carried_models.clear()
        for key in carried:
            instance = self.instances[key]
            instances[key] = instance
            if instance.model not in models and instance.model in self.models:
                models[instance.model] = self.models[instance.model]
                self._carried_models.add(instance.model)
        self.models, self.instances, self.carried = models, instances, carried
        self.epoch, self.term, self.known = snapshot.epoch, snapshot.term, True

    def apply(self, delta: control_pb2.RoutingDelta) -> None:
        """Takes a delta. Raises EpochGapError, and changes nothing, when one before it is missing."""
        if not self.known or delta.epoch != self.epoch + 1:
            raise EpochGapError(f"the table is at epoch {self.epoch}; the delta is for {delta.epoch}")
        for name in delta.removed_models:
            self.models.pop(name, None)
        for model in delta.models:
            self.models[model.name] = model
            self._carried_models.discard(model.name)
        for key in delta.removed_instance_ids:
            self.instances.pop(key, None)
            self.carried.discard(key)
        for instance in delta.instances:
            self.instances[instance.instance_id] = instance
            self.carried.discard(instance.instance_id)
        self.epoch = delta.epoch

    def drop(self, instance_id: str) -> None:
        """Forgets a carried instance that serves no more, and its model if that was its last."""
        if instance_id not in self.carried:
            return
        self.carried.discard(instance_id)
        model = self.instances.pop(instance_id).model
        if model in self._carried_models and not any(i.model == model for i in self.instances.values()):
            self._carried_models.discard(model)
            self.models.pop(model, None)

    def message(self) -> control_pb2.RoutingTable:
        """The table as it is now."""
        return control_pb2.RoutingTable(
            epoch=self.epoch,
            term=self.term,
            models=self.models.values(),
            instances=self.instances.values(),
        )
