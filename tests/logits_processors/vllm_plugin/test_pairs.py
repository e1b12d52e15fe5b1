"""The books on vLLM's rows and request indices against a dictionary model."""

import random

from textguide.logits_processors.vllm_plugin.pairs import BRANCH, MAIN, Indices, Member, Pairs, Rows

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
        names = [f"{number}-main", f"{number}-branch"]
        for name, role in zip(names, (MAIN, BRANCH), strict=True):
            self.members[name] = Member(str(number), role, number)
        return names

    def expected(self) -> list[tuple[int, int | None, str]]:
        rows = {request: row for row, request in self.batch.items()}
        found = []
        for row, request in sorted(self.batch.items()):
            member = self.members.get(request)
            if member is not None and member.role == MAIN:
                found.append((row, rows.get(f"{member.pair}-branch"), member.pair))
        return found

    def leave(self, request: str, preempted: bool) -> int:
        row = next(row for row, name in self.batch.items() if name == request)
        del self.batch[row]
        if preempted:
            self.waiting.append(request)
        else:
            self.members.pop(request, None)
        return row


def seen(pairs):
    return [(row, branch, member.pair) for row, branch, member in pairs]


def test_rows_follow_what_the_first_runner_reports():
    engine, rows = Engine(random.Random(0), 12), Rows()
    both = alone = 0
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
        assert seen(rows.pairs()) == engine.expected()
        assert len(rows.members) == sum(request in engine.members for request in engine.batch.values())
        both += sum(branch is not None for _, branch, _ in engine.expected())
        alone += sum(branch is None for _, branch, _ in engine.expected())
    assert both > STEPS
    assert alone > STEPS / 10


def test_indices_forget_whoever_had_them_before():
    engine, indices = Engine(random.Random(1), 12), Indices()
    both = 0
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
        expected = []
        for row, index in enumerate(order):
            member = engine.members.get(engine.batch[index])
            if member is not None and member.role == MAIN:
                expected.append((row, where.get(f"{member.pair}-branch"), member.pair))
        assert seen(indices.pairs(order)) == expected
        both += sum(branch is not None for _, branch, _ in expected)
    assert both > STEPS


def test_pairs_follow_a_dictionary():
    random_ = random.Random(2)
    pairs, model = Pairs(), {}  # main request → branch request
    for number in range(STEPS):
        chance = random_.random()
        if chance < 0.3 or not model:
            pairs.add(f"r{number}", state=number)
            model[f"r{number}"] = None
        else:
            main = random_.choice(sorted(model))
            pair = pairs.of(main)
            if chance < 0.55:
                assert pairs.drop(pair) == model.pop(main)
            elif model[main] is None:
                model[main] = pairs.spawn(pair)
            else:
                assert pairs.dismiss(pair) == model[main]
                model[main] = None
        assert {pair.main: pair.branch for pair in pairs} == model
        branches = {branch: main for main, branch in model.items() if branch}
        assert set(pairs.by_branch) == set(branches)
        for branch, main in branches.items():
            assert pairs.is_branch(branch)
            assert pairs.of(branch).partner(branch) == main
            assert pairs.of(main).partner(main) == branch
    assert len({pair.branch for pair in pairs if pair.branch}) == len(branches)
