# SPDX-License-Identifier: Apache-2.0
"""A stream's verdicts in bounded memory: the worst stays visible."""

from __future__ import annotations

from runtime.judging.verdict import Label, Reason
from runtime.sinks.report.history import MAX_BINS, MAX_FACES, OTHERS, History
from tests.runtime.sinks.test_terminal import at


def test_a_verdict_belongs_to_the_hop_that_ended_with_its_window() -> None:
    h = History(0.2)
    for end_s in (2.0, 2.2, 2.4000001):
        h.take(at(end_s, Label.REAL))
    assert sorted(h.faces[3]) == [9, 10, 11]
    assert h.bins == 12


def test_the_gravest_label_and_the_highest_scores_of_a_bin_win() -> None:
    h = History(1.0)
    h.take(at(2.2, Label.FAKE, 0.9, p_fake_video=0.1))
    h.take(at(2.4, Label.REAL, 0.2, p_fake_video=0.6))
    h.take(at(2.6, Label.ABSTAIN, None, reason=Reason.NO_FACE, p_fake_video=None))
    (cell,) = h.faces[3].values()
    assert (cell.label, cell.p_fake, cell.p_fake_video) == (Label.FAKE, 0.9, 0.6)
    assert cell.reasons == {Reason.NO_FACE: 1}


def test_scores_that_people_do_not_get_to_see_are_not_kept() -> None:
    h = History(0.2)
    h.take(at(2.0, Label.ABSTAIN, 0.99, reason=Reason.OUT_OF_DOMAIN))
    assert h.faces[3][9].p_fake is None


def test_a_day_takes_no_more_room_than_a_minute_and_hides_no_fake() -> None:
    h = History(0.2)
    for i in range(20_000):
        h.take(at(2.0 + i * 4.0, Label.REAL, 0.1))
    h.take(at(80_002.0, Label.FAKE, 0.97))
    for i in range(2000):
        h.take(at(80_006.0 + i * 4.0, Label.REAL, 0.1))
    assert h.bins <= MAX_BINS
    assert len(h.faces[3]) <= MAX_BINS
    fakes = [i for i, cell in h.faces[3].items() if cell.label is Label.FAKE]
    assert len(fakes) == 1
    assert fakes[0] * h.bin_s <= 80_002.0 <= (fakes[0] + 1) * h.bin_s
    assert sum(sum(c.labels.values()) for c in h.faces[3].values()) == 22_001


def test_a_busy_street_shares_a_row() -> None:
    h = History(0.2)
    for face in range(1000):
        h.take(at(2.0 + face, Label.REAL, 0.1, face_id=face))
    assert len(h.faces) == MAX_FACES + 1
    assert OTHERS in h.faces
