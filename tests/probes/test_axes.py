"""The algebra of axes: what is known of a dimension, of its parts and of what it is a part of."""

from __future__ import annotations

import threading

import torch
from torch import nn

from probes.features.axes import Axis, Strength, letters_of, merged, new_axes, regrouped
from probes.features.axis_rules import attended
from probes.features.tracing import AxisTrace


def claimed(kind: str, strength: Strength) -> Axis:
    axis = Axis()
    axis.claim(kind, strength)  # type: ignore[arg-type]
    return axis


def test_the_strongest_claim_of_a_kind_stays() -> None:
    axis = claimed("C", Strength.SURE)
    axis.claim("C", Strength.SHARED)
    axis.claim("P", Strength.MADE)
    assert axis.claims() == {"C": Strength.SURE, "P": Strength.MADE}
    assert axis.kind == "C"
    axis.claim("P", Strength.SURE)
    assert axis.kind is None  # it contradicts itself
    other = claimed("C", Strength.MADE)
    other.unite(claimed("C", Strength.SURE))
    assert other.claims() == {"C": Strength.SURE}


def test_a_part_is_what_the_whole_is_but_not_the_reverse() -> None:
    whole = Axis()
    part = Axis(whole=whole)
    part.claim("P", Strength.SHARED)
    assert whole.claims() == {}
    whole.claim("C", Strength.MADE)
    assert part.claims() == {"C": Strength.MADE, "P": Strength.SHARED}
    assert part.origins == [whole]
    part.unite(whole)  # it follows from the whole, so they are not one
    assert part.root is not whole.root
    other = Axis()
    third = Axis(whole=whole)
    third.unite(Axis(whole=other))
    assert third.origins == [whole, other]


def test_what_is_flattened_is_known_by_its_parts() -> None:
    batch, place = claimed("B", Strength.INPUT), claimed("P", Strength.SHARED)
    rows = merged([(batch, 4), (place, 5)])
    assert rows.claims() == {"B": Strength.INPUT}
    rows.claim("P", Strength.SURE)
    assert place.claims() == {"P": Strength.SURE}  # and not the examples
    assert batch.claims() == {"B": Strength.INPUT}
    maps = merged([(claimed("P", Strength.SURE), 2), (claimed("P", Strength.SHARED), 3)])
    assert maps.claims() == {"P": Strength.SHARED}  # as sure as the least sure
    assert merged([(Axis(), 2), (claimed("P", Strength.SURE), 3)]).claims() == {}
    channels = merged([(claimed("C", Strength.SHARED), 2), (place, 3)])
    assert channels.claims() == {"C": Strength.SHARED}


def test_axes_that_are_one_have_the_same_parts() -> None:
    a, b = new_axes(2), new_axes(2)
    one, other = merged([(a[0], 2), (a[1], 3)]), merged([(b[0], 2), (b[1], 3)])
    one.unite(other)
    assert [x.root is y.root for x, y in zip(a, b, strict=True)] == [True, True]
    assert a[0].root is not a[1].root
    plain = Axis()
    plain.unite(one)
    assert plain.root.parts == one.root.parts  # what has parts keeps them


def test_a_reshape_takes_dimensions_in_their_order() -> None:
    a, b, c = new_axes(3)
    assert [x.root for x in regrouped((a, b, c), (2, 3, 4), (2, 3, 4))] == [a, b, c]
    first, last = regrouped((a, b, c), (2, 3, 4), (6, 4))
    assert (first.parts, last) == (((a, 2), (b, 3)), c)
    assert list(regrouped((first, last), (6, 4), (2, 3, 4))) == [a, b, c]
    outer, inner = regrouped((a,), (6,), (2, 3))
    assert outer.origins == inner.origins == [a]
    assert outer is not inner
    shared = regrouped((a, b), (4, 9), (6, 6))  # sizes that do not divide each other
    assert shared[0] is shared[1]
    assert [axis for axis, _ in shared[0].parts] == [a, b]
    one, rest = regrouped((a,), (4,), (1, 4))
    assert (one.parts, one.origins, rest) == ((), [one], a)
    assert regrouped((a, b), (2, 0), (0,))[0].parts == ((a, 2), (b, 0))


def test_letters_of_what_is_known() -> None:
    batch, channel, place, unknown = (
        claimed("B", Strength.INPUT),
        claimed("C", Strength.SURE),
        claimed("P", Strength.SHARED),
        Axis(),
    )

    def letters(*axes: Axis, first: bool = False) -> str:
        return letters_of(axes, batch_comes_first=first)

    assert letters(batch, unknown) == "BC"
    assert letters(unknown, batch) == "CB"
    assert letters(batch, place, channel) == "BTC"
    assert letters(batch, channel, place) == "BCL"
    assert letters(place, place, batch, channel) == "HWBC"
    assert letters(batch, channel, place, place, place) == "BCDHW"
    assert letters(batch, channel, *[place] * 4) == "BCPPPP"
    assert letters(batch, place, place) == "BPP"
    assert letters(batch, channel, unknown) == "BC?"
    weak = claimed("B", Strength.ARGUMENT)
    assert letters(weak, batch, channel) == "?BC"  # the stronger of two
    assert letters(batch, claimed("B", Strength.INPUT), channel) == "B?C"  # the first of two alike
    assert letters(batch, channel, claimed("C", Strength.MADE)) == "BC?"  # the strongest only
    assert letters(batch, channel, claimed("C", Strength.SURE)) == "B??"  # two that are no parts of one
    split = [Axis(whole=channel), Axis(whole=channel)]
    assert letters(batch, *split) == "BCC"
    doubtful = claimed("C", Strength.SHARED)
    doubtful.claim("P", Strength.SHARED)
    assert letters(batch, doubtful, channel) == "BTC"
    assert letters(unknown, unknown, first=True) == "BC"
    assert letters(unknown, unknown, unknown, first=True) == "B??"
    assert letters(unknown, unknown, unknown) == "???"
    assert letters(place, unknown, unknown, first=True) == "P??"
    assert letters(Axis(is_constant=True), unknown, unknown, first=True) == "???"
    assert letters(first=True) == ""


def test_attention_knows_its_weights() -> None:
    """(B, queries, keys), whichever dimension of what it reads holds the examples."""
    for batch_first, order in ((True, (0, 1)), (False, (1, 0))):
        query, key = new_axes(3), new_axes(3)
        output, weights = attended(query, key, batch_first=batch_first)
        batch, time = order
        assert weights == (query[batch], query[time], key[time])
        assert output[:2] == query[:2]
        assert output[2].claims() == query[2].claims() == {"C": Strength.SURE}
        assert query[time].claims() == key[time].claims() == {"P": Strength.SURE}
        # What comes first may be windows, what comes second holds the examples.
        assert query[batch].claims() == ({} if batch_first else {"B": Strength.SURE})
    rows = merged([(Axis(), 2), (Axis(), 3)])
    attended((Axis(), rows, Axis()), new_axes(3), batch_first=False)
    assert rows.claims() == {}
    query, key = new_axes(2), new_axes(2)
    assert attended(query, key, batch_first=False)[1] == (query[0], key[0])
    assert query[0].claims() == key[0].claims() == {"P": Strength.SURE}


def test_another_thread_is_not_followed() -> None:
    trace, model, x = AxisTrace(), nn.MultiheadAttention(4, 2), torch.randn(3, 2, 4)
    trace.enter(model, (x, x, x))
    trace.leave(model, (x, x, x), {}, (x, None))  # nothing is under way
    trace.start(model, (x, x, x), {})
    try:
        inside = list(trace._inside)
        assert [module for module, _ in inside] == [model]

        def elsewhere() -> None:
            trace.enter(model, (x, x, x))
            trace.leave(model, (x, x, x), {}, (x, None))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert trace._inside == inside
    finally:
        trace.stop()


def test_arguments_are_found_wherever_they_are() -> None:
    """The first holds the examples, and so do the others where nothing speaks against it."""
    trace, (x, y, z) = AxisTrace(), torch.zeros(3, 4, 2)
    trace.start(nn.Identity(), ([x, 3],), {"more": {"y": (y, None)}, "number": torch.zeros(()), "z": z})
    try:
        found = [trace.axes_of(tensor)[0].claims() for tensor in (x, y, z)]
    finally:
        trace.stop()
    assert found == [{"B": Strength.INPUT}, {"B": Strength.ARGUMENT}, {"B": Strength.ARGUMENT}]
