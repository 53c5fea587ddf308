"""Exchanges are counted as often as they happen, over the axes over which they go."""

import numpy as np
import pytest

from big_vision_ext.planning import collectives, hlo
from tests.planning import pods, programs


def _find(topology=None):
  topology = topology or pods.pod((2, 4))
  mesh = pods.mesh(topology, data=2, fsdp=4, tensor=1)
  return {(c.kind, c.axes): c for c in collectives.find(hlo.parse(programs.text()), mesh, topology)}


def test_kinds_axes_counts_and_bytes_of_a_known_program():
  found = {key: (c.group, c.count, c.payload_bytes) for key, c in _find().items()}
  assert found == {
    ("all-gather", ("fsdp",)): (4, programs.TURNS, programs.TURNS * 16 * 32 * 4),
    ("reduce-scatter", ("fsdp",)): (4, 1, 16 * 32 * 4),
    ("all-reduce", ("data",)): (2, 1, 16 * 4),
    ("all-reduce", ("data", "fsdp")): (8, 1, 4),
    ("all-to-all", ("fsdp",)): (4, 1, 8 * 16 * 4),
    ("collective-permute", ("data", "fsdp")): (2, 1, 8 * 16 * 4),
  }


def test_what_is_sent_is_that_of_ring_algorithms():
  found = _find()
  gather = found["all-gather", ("fsdp",)]
  assert gather.sent_bytes == programs.TURNS * 3 * 16 * 32
  assert found["all-reduce", ("data",)].sent_bytes == 16 * 4
  assert found["all-reduce", ("data", "fsdp")].sent_bytes == round(4 * 2 * 7 / 8)
  assert found["collective-permute", ("data", "fsdp")].sent_bytes == 8 * 16 * 4


def test_an_exchange_between_slices_takes_as_long_as_the_slow_network_makes_it():
  one, two = _find(), _find(pods.pod((2, 2), slices=2))
  chip = pods.pod((2, 4)).chip
  assert two["all-gather", ("fsdp",)].count == one["all-gather", ("fsdp",)].count
  # The pair of an all-reduce over data is one chip of each slice.
  assert two["all-reduce", ("data",)].seconds == pytest.approx(64 / chip.dcn_bytes)
  assert one["all-reduce", ("data",)].seconds == pytest.approx(64 / chip.link_bytes)


@pytest.mark.parametrize("text, expected", [
  ("replica_groups={{0,2},{1,3}}, dimensions={0}", [(0, 2), (1, 3)]),
  ("replica_groups={}, to_apply=%add", [(0, 1, 2, 3)]),
  ("replica_groups=[2,2]<=[4], dimensions={0}", [(0, 1), (2, 3)]),
  ("replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}", [(0, 2), (1, 3)]),
  ("replica_groups=mesh['a'=2,'b'=2] {'a'}, dimensions={0}", [(0, 2), (1, 3)]),
  ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, dimensions={0}", [(0, 1, 2, 3)]),
  ("replica_groups=mesh['a'=4] {'a':(1)2}, dimensions={0}", [(0, 2), (1, 3)]),
  ("replica_groups=mesh['a'=4] {'a':(2)2}, dimensions={0}", [(0, 1), (2, 3)]),
  ("source_target_pairs={{0,1},{1,0},{2,3},{3,2}}, x=1", [(0, 1), (2, 3)]),
])
def test_every_notation_of_groups_is_read(text, expected):
  assert collectives.members(_instruction(text), 4) == expected


def test_groups_in_an_unknown_notation_are_refused_rather_than_miscounted():
  with pytest.raises(ValueError, match="cannot read the groups of x"):
    collectives.members(_instruction("replica_groups=everybody"), 4)


def test_axes_are_those_along_which_members_of_a_group_differ():
  mesh = pods.mesh(pods.pod((2, 4)), data=2, fsdp=2, tensor=2)
  grid = np.arange(8).reshape(2, 2, 2)
  assert collectives.mesh_axes(grid.reshape(1, 8).tolist(), mesh) == ("data", "fsdp", "tensor")
  assert collectives.mesh_axes(grid.transpose(0, 2, 1).reshape(4, 2).tolist(), mesh) == ("fsdp",)


def _instruction(attributes):
  return hlo.Instruction("x", "all-gather", (), (), "", attributes)


def test_an_asynchronous_pair_counts_once():
  text = '''HloModule m

ENTRY %main (p: f32[4]) -> f32[16] {
  %p = f32[4]{0} parameter(0)
  %start = (f32[4]{0}, f32[16]{0}) all-gather-start(%p), replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %done = f32[16]{0} all-gather-done(%start)
}
'''
  topology = pods.pod((2, 2))
  mesh = pods.mesh(topology, data=1, fsdp=4, tensor=1)
  (found,) = collectives.find(hlo.parse(text), mesh, topology)
  assert (found.count, found.payload_bytes, found.sent_bytes) == (1, 64, 48)


def test_a_collective_that_runs_beside_computations_counts_where_it_starts():
  # As TPUs write it: one channel, in the fusion that starts it, in a loop's body and in the done.
  gather = ("all-gather(%a), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}, "
            'frontend_attributes={chain_id="0"}')
  text = "HloModule m\n" + "".join(f"""
%{name} (a: f32[4]) -> f32[16] {{
  %a = f32[4]{{0}} parameter(0)
  ROOT %{name}.gather = f32[16]{{0}} {gather}
}}
""" for name in ("begin", "beside", "end")) + """
ENTRY %main (p: f32[4]) -> f32[16] {
  %p = f32[4]{0} parameter(0)
  %async-collective-start = f32[16]{0} fusion(%p), kind=kCustom, calls=%begin
  %work = f32[16]{0} fusion(%p), kind=kOutput, calls=%beside
  ROOT %async-collective-done = f32[16]{0} fusion(%p), kind=kCustom, calls=%end
}
"""
  topology = pods.pod((2, 2))
  mesh = pods.mesh(topology, data=1, fsdp=4, tensor=1)
  (found,) = collectives.find(hlo.parse(text), mesh, topology)
  assert (found.count, found.payload_bytes) == (1, 64)
