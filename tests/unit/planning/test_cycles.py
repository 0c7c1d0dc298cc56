"""Time by part of a compiled step: from the compiler's cycles, and what its collectives add."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxbig.cost.flops import count_flops, named_flops
from jaxbig.cost.hardware import parse_topology
from jaxbig.planning import cycles, hlo
from jaxbig.planning.collectives import find_collectives, table

POD = parse_topology("v5p:2x2x1")
CLOCK = POD.chip.clock
GROUPS = "replica_groups=[1,4]<=[4], use_global_device_ids=true"
BLOCK = "jit(train_step)/jvp(Decoder)/blocks/while/body/block"


def cost(count: int, name: str = "") -> str:
    where = f'metadata={{op_name="{name}"}}, ' if name else ""
    return f'{where}backend_config={{"window_config":{{"estimated_cycles":"{count}"}}}}'


def module(*lines: str, more: str = "") -> hlo.Module:
    """A module whose entry has these instructions."""
    body = "\n".join(f"  {line}" for line in lines)
    return hlo.parse(f"HloModule m\n\n{more}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (f"{BLOCK}/attention/query/dot_general", cycles.ATTENTION),
        (f"{BLOCK}/attention_norm/mul", cycles.ATTENTION),
        (f"{BLOCK}/block.mlp/up/dot_general", cycles.MLP),
        (f"{BLOCK}/experts/dot_general", cycles.MLP),
        ("jit(train_step)/transpose(jvp(Decoder.hidden))/Decoder.embed/tokens/add", "vocabulary"),
        ("jit(train_step)/transpose(jvp())/while/body/checkpoint/dot_general", "vocabulary"),
        ("jit(train_step)/jvp(ConvNet)/conv_0/conv_general_dilated", cycles.MODEL),
        ("jit(train_step)/add", cycles.OPTIMIZER),
        ("convert.3", cycles.REST),
    ],
)
def test_an_operation_belongs_to_the_part_that_its_name_says(name: str, part: str) -> None:
    assert cycles.part_of(name).startswith(part)


def test_the_parts_of_a_loop_count_as_often_as_it_runs_and_copies_go_to_what_they_are_for() -> None:
    loop = f"""%body (s: (f32[8])) -> (f32[8]) {{
  %s = (f32[8]) parameter(0)
  %x = f32[8]{{0}} get-tuple-element(%s), index=0
  %copy.1 = f32[8]{{0}} copy(%x), {cost(10)}
  %y = f32[8]{{0}} fusion(%copy.1), kind=kLoop, calls=%f, {cost(100, f"{BLOCK}/block.mlp/up")}
  ROOT %t = (f32[8]) tuple(%y)
}}
%condition (s: (f32[8])) -> pred[] {{
  ROOT %p = pred[] constant(true)
}}
%f (q: f32[8]) -> f32[8] {{
  ROOT %q = f32[8]{{0}} parameter(0)
}}
"""
    found = cycles.timeline(
        module(
            "%p = f32[8]{0} parameter(0)",
            "%s = (f32[8]) tuple(%p)",
            "%w = (f32[8]) while(%s), condition=%condition, body=%body, "
            'backend_config={"known_trip_count":{"n":"5"}}',
            "%g = f32[8]{0} get-tuple-element(%w), index=0",
            f"ROOT %r = f32[8]{{0}} fusion(%g), kind=kLoop, calls=%f, "
            f"{cost(7, 'jit(train_step)/add')}",
            more=loop,
        ),
        POD,
        {},
    )
    assert found is not None
    assert found.parts == pytest.approx({cycles.MLP: 5 * 110 / CLOCK, cycles.OPTIMIZER: 7 / CLOCK})
    assert found.seconds == pytest.approx(557 / CLOCK) and found.communication == 0


@pytest.mark.parametrize("cycles_between", [0, 100, 10**9])
def test_a_collective_is_exposed_as_far_as_no_work_is_done_beside_it(cycles_between: int) -> None:
    size = 4 * 4 * 2**20
    sent = 3 / 4 * size / (POD.chip.interconnect_bandwidth / 2)
    part = size // 4 // 4
    found = cycles.timeline(
        module(
            f"%p = f32[{part}]{{0}} parameter(0)",
            f"%s = (f32[{part}]{{0}}, f32[{4 * part}]{{0}}) all-gather-start(%p), "
            f"channel_id=1, {GROUPS}, dimensions={{0}}",
            f"%x = f32[{part}]{{0}} add(%p, %p), {cost(cycles_between + 1, 'jit(train_step)/add')}",
            f"ROOT %d = f32[{4 * part}]{{0}} all-gather-done(%s)",
        ),
        POD,
        {},
    )
    assert found is not None and found.communication == pytest.approx(sent)
    assert found.exposed == pytest.approx(max(sent - (cycles_between + 1) / CLOCK, 0))


def test_a_collective_of_the_sparse_cores_starts_when_it_is_given_its_array() -> None:
    size = 4 * 4 * 2**20
    part = size // 16
    inner = f"""%sent (q: f32[{part}]) -> f32[{4 * part}] {{
  %q = f32[{part}]{{0}} parameter(0)
  ROOT %g = f32[{4 * part}]{{0}} all-gather(%q), channel_id=3, {GROUPS}, dimensions={{0}}
}}, execution_thread="sparsecore"
"""
    work = f"f32[{part}]{{0}} add(%p, %p), {cost(1000, 'jit(train_step)/add')}"
    found = cycles.timeline(
        module(
            f"%p = f32[{part}]{{0}} parameter(0)",
            "%s = ((), (), (s32[8]{0})) custom-call-start(), called_computations={%sent}",
            f"%before = {work}",
            f"%u = ((f32[{part}]{{0}}), f32[{4 * part}]{{0}}) custom-call-update(%s, %before)",
            f"%beside = {work}",
            f"ROOT %d = f32[{4 * part}]{{0}} custom-call-done(%u)",
            more=inner,
        ),
        POD,
        {},
    )
    sent = 3 / 4 * size / (POD.chip.interconnect_bandwidth / 2)
    assert found is not None and found.communication == pytest.approx(sent)
    assert found.exposed == pytest.approx(sent - 1000 / CLOCK)


def test_a_collective_that_waits_is_exposed_and_equal_channels_are_different_ones() -> None:
    gather = f"channel_id=1, {GROUPS}, dimensions={{0}}"
    lines = module(
        "%p = f32[1024]{0} parameter(0)",
        f"%a = f32[4096]{{0}} all-gather(%p), {gather}",
        f"%b = f32[4096]{{0}} all-gather(%p), {gather}",
        f"ROOT %x = f32[4096]{{0}} add(%a, %b), {cost(1, 'jit(train_step)/add')}",
    )
    found = cycles.timeline(lines, POD, {})
    assert found is not None and found.exposed == found.communication > 0 == found.overlapped
    [row] = table(find_collectives(lines, 4), {"data": 4})
    assert (row["count"], row["bytes"]) == (2, 2 * 4096 * 4)


def test_a_collective_in_several_fusions_is_one() -> None:
    inner = f"""%NAME (q: f32[1024]) -> f32[4096] {{
  %q = f32[1024]{{0}} parameter(0)
  ROOT %g = f32[4096]{{0}} all-gather(%q), channel_id=3, {GROUPS}, dimensions={{0}}
}}
"""
    lines = module(
        "%p = f32[1024]{0} parameter(0)",
        f"%a = f32[4096]{{0}} fusion(%p), kind=kCustom, calls=%f1, {cost(1, 'jit(f)/add')}",
        f"ROOT %b = f32[4096]{{0}} fusion(%p), kind=kCustom, calls=%f2, {cost(1, 'jit(f)/add')}",
        more=inner.replace("NAME", "f1") + inner.replace("NAME", "f2"),
    )
    [row] = table(find_collectives(lines, 4), {"data": 4})
    assert (row["count"], row["bytes"]) == (1, 4096 * 4)
    found = cycles.timeline(lines, POD, {})
    [one] = find_collectives(lines, 4)
    assert found is not None and found.communication == pytest.approx(one.seconds(POD))


def test_the_kernels_of_a_part_share_its_seconds() -> None:
    call = 'custom-call(%p), custom_call_target="tpu_custom_call", metadata={op_name="NAME"}'
    lines = module(
        "%p = f32[8]{0} parameter(0)",
        f"%a = f32[8]{{0}} {call.replace('NAME', f'{BLOCK}/attention/pallas_call')}",
        f"%b = f32[8]{{0}} {call.replace('NAME', f'{BLOCK}/attention/pallas_call')}",
        f"ROOT %x = f32[8]{{0}} add(%a, %b), {cost(1, 'jit(train_step)/add')}",
    )
    found = cycles.timeline(lines, POD, {cycles.ATTENTION: 3.0})
    assert found is not None and found.parts[cycles.ATTENTION] == pytest.approx(3.0)


def test_a_program_without_estimates_has_no_timeline() -> None:
    lines = module("%p = f32[8]{0} parameter(0)", "ROOT %x = f32[8]{0} add(%p, %p)")
    assert cycles.timeline(lines, POD, {}) is None


def test_flops_of_some_operations_have_their_names_and_are_counted_as_all_are() -> None:
    def f(x: Any) -> Any:
        with jax.named_scope("outer"):
            return jax.lax.scan(lambda x, _: (x @ x, None), x, length=3)[0]

    jaxpr = jax.make_jaxpr(f)(jnp.zeros((8, 8)))
    [(name, flops)] = named_flops(jaxpr, ("dot_general",))
    assert flops == count_flops(jaxpr) == 3 * 2 * 8**3 and "outer" in name
    assert not list(named_flops(jaxpr, ("pallas_call",)))
