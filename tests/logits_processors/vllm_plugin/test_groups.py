"""The books on vLLM's rows and request indices against a dictionary model."""

import random

from textguide.logits_processors.vllm_plugin.batch_rows import Indices, Member, Rows
from textguide.logits_processors.vllm_plugin.branch_group import BranchGroup
from textguide.logits_processors.vllm_plugin.groups import Groups
from textguide.logits_processors.vllm_plugin.request_state import RequestState
from textguide.logits_processors.vllm_plugin.requests import MAIN, Request

STEPS = 10_000


class Engine:
    """A dictionary model: requests by id, each in the batch or not, as an engine would move them about."""

    def __init__(self, random_: random.Random, size: int) -> None:
        self.random, self.size = random_, size
        self.batch: dict[int, str] = {}  # row or request index → request
        self.waiting: list[str] = []  # preempted
        self.members: dict[str, Member[int]] = {}
        self.born = 0

    def free(self) -> list[int]:
        return [row for row in range(self.size) if row not in self.batch]

    def arrivals(self) -> list[str]:
        number = self.born
        self.born += 1
        if self.random.random() < 0.4:
            return [f"plain-{number}"]
        names = [f"{number}-{place}" for place in range(self.random.choice((1, 2, 2, 3, 4)))]
        for place, name in enumerate(names):
            self.members[name] = Member(str(number), place, len(names))
        return names

    def expected(self, where: dict[str, int] | None = None) -> list[tuple[int, tuple[int, ...], str]]:
        rows = {request: row for row, request in self.batch.items()} if where is None else where
        found = []
        for request, row in sorted(rows.items(), key=lambda one: one[1]):
            member = self.members.get(request)
            if member is not None and member.place == MAIN:
                names = [f"{member.group}-{place}" for place in range(1, member.payload)]
                found.append((row, tuple(rows[name] for name in names if name in rows), member.group))
        return found

    def counts(self, expected: list[tuple[int, tuple[int, ...], str]]) -> tuple[int, int]:
        """Groups that are whole, and others."""
        whole = sum(len(branches) + 1 == self.members[f"{group}-0"].payload for _, branches, group in expected)
        return whole, len(expected) - whole

    def leave(self, request: str, preempted: bool) -> int:
        row = next(row for row, name in self.batch.items() if name == request)
        del self.batch[row]
        if preempted:
            self.waiting.append(request)
        else:
            self.members.pop(request, None)
        return row


def seen(groups):
    return [(row, branches, member.group) for row, branches, member in groups]


def test_rows_follow_what_the_first_runner_reports():
    engine, rows = Engine(random.Random(0), 12), Rows()
    whole = parted = 0
    for _ in range(STEPS):
        removed, added, moved = [], [], []
        for request in list(engine.batch.values()):
            chance = engine.random.random()
            if chance < 0.05:  # finished or aborted
                removed.append(engine.leave(request, preempted=False))
            elif chance < 0.10:
                removed.append(engine.leave(request, preempted=True))
        engine.waiting = [request for request in engine.waiting if engine.random.random() > 0.02]  # aborted there
        arriving = engine.waiting + (engine.arrivals() if engine.random.random() < 0.6 else [])
        engine.waiting = []
        for request in arriving:
            free = engine.free()
            if not free or engine.random.random() < 0.1:
                engine.waiting.append(request)
                continue
            engine.batch[free[0]] = request
            added.append((free[0], engine.members.get(request)))
            if free[0] in removed:
                removed.remove(free[0])  # vLLM reports a row that was filled again as added alone
        while engine.batch and (free := engine.free()) and free[0] < max(engine.batch):  # condense
            last = max(engine.batch)
            engine.batch[free[0]] = engine.batch.pop(last)
            moved.append((last, free[0], False))
        for _ in range(engine.random.randrange(3)):  # reorder
            if len(engine.batch) > 1:
                a, b = engine.random.sample(sorted(engine.batch), 2)
                engine.batch[a], engine.batch[b] = engine.batch[b], engine.batch[a]
                moved.append((a, b, True))
        for row in removed:
            rows.remove(row)
        for row, member in added:
            rows.add(row, member)
        for source, target, swap in moved:
            rows.move(source, target, swap)
        assert seen(rows.groups()) == engine.expected()
        assert len(rows.members) == sum(request in engine.members for request in engine.batch.values())
        counted = engine.counts(engine.expected())
        whole, parted = whole + counted[0], parted + counted[1]
    assert whole > STEPS
    assert parted > STEPS / 10


def test_indices_forget_whoever_had_them_before():
    engine, indices = Engine(random.Random(1), 12), Indices()
    whole = 0
    for _ in range(STEPS):
        for request in list(engine.batch.values()):
            chance = engine.random.random()
            if chance < 0.1:
                engine.leave(request, preempted=chance < 0.05)
        engine.waiting = [request for request in engine.waiting if engine.random.random() > 0.02]
        arriving = engine.waiting + (engine.arrivals() if engine.random.random() < 0.6 else [])
        engine.waiting = []
        for request in arriving:
            free = engine.free()
            if not free:
                engine.waiting.append(request)
                continue
            index = engine.random.choice(free)
            engine.batch[index] = request
            indices.add(index, engine.members.get(request))
        order = [index for index in engine.batch if engine.random.random() < 0.9]  # some are not scheduled
        engine.random.shuffle(order)
        where = {engine.batch[index]: row for row, index in enumerate(order)}
        expected = engine.expected(where)
        assert seen(indices.groups(order)) == expected
        whole += engine.counts(expected)[0]
    assert whole > STEPS


def test_groups_follow_a_dictionary():
    random_ = random.Random(2)
    groups, model = Groups(), {}  # main request → branch requests
    state = RequestState(Request())
    for number in range(STEPS):
        chance = random_.random()
        if chance < 0.3 or not model:
            group = BranchGroup(f"r{number}", state)
            groups.add(group)
            groups.add_client(group, group.name)
            model[group.name] = ()
        else:
            main = random_.choice(sorted(model))
            group = groups.of(main)
            if chance < 0.55:
                groups.remove(group)
                del model[main]
            elif not model[main]:
                model[main] = tuple(f"{main}/{number}-{place}" for place in range(random_.choice((1, 2, 3))))
                group.branches = model[main]
                groups.add_internal(group, group.branches)
            else:
                groups.remove_internal(group.branches)
                group.branches = model[main] = ()
        assert {group.name: group.branches for group in groups} == model
        branches = {branch: main for main, several in model.items() for branch in several}
        assert set(groups.by_internal) == set(branches)
        assert set(groups.by_client) == set(model)
        for branch, main in branches.items():
            assert groups.is_internal(branch)
            assert not groups.is_internal(main)
            assert groups.of(branch) is groups.of(main)
            assert groups.of(branch).members == (main, *model[main])
