"""FSDP among CPU processes, which accelerate turns off without a word: its list of the kinds of processes that may have
it lacks MULTI_CPU.

Python imports this file at its start where the folder is on PYTHONPATH, so that it reaches what a launcher starts, too.
"""

import functools

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

_initialize = AcceleratorState.__init__


@functools.wraps(_initialize)
def _initialize_with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    _initialize(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is None or self.distributed_type != DistributedType.MULTI_CPU:
        return
    # What accelerate does for the other kinds.
    self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    if self._mixed_precision != "no":
        fsdp_plugin.set_mixed_precision(self._mixed_precision)
    self.fsdp_plugin = fsdp_plugin


AcceleratorState.__init__ = _initialize_with_fsdp
