"""What a lying server learns in a sparse graph is a sum over a closed set: `graph.py`'s premise.

Real clients, a server that hides members from each of them at random, loses some on purpose and
keeps what two colluding members hold. Whatever it can then combine is found by linear algebra.
"""

import numpy as np

from fedattn.errors import SecAggError
from fedattn.secagg import messages, shown
from fedattn.secagg.messages import Kind
from fedattn.secagg.wire import Stage, open_signed, server_message
from tests.secagg.harness import Round, Trusting, make_spec

N, COLLUDING, T, K = 9, {8, 9}, 6, 4
HONEST = range(1, 8)


class Lying(Round):
    """A round whose server shows every client some of what it should see, by `dice`."""

    def __init__(self, dice, seed, shares=3):
        spec = make_spec(N, T, 2, 1, degree=K, share_threshold=shares)
        lost = {int(i) for i in HONEST if dice.random() < 0.25}
        super().__init__(spec, gone={Stage.UPLOAD: lost}, tolerant=True)
        self.seed, self.dice, self.packets = seed, dice, {}
        self.hide = dice.choice([0.0, 0.15, 0.4])
        self.server.shared, self.server.mailbox = self.take, self.mail
        self.server._uploads = Trusting(spec)

    def hidden(self, index, members):
        """Whom the server hides from `index`, of `members`."""
        return {i for i in members if i != index and self.dice.random() < self.hide}

    def share(self):
        key_list = self.server.key_list

        def narrowed(index):
            key_list(index)
            near = {index, *self.server._adverts.neighbours(index)}
            near -= self.hidden(index, near) if self.dice.random() < 0.5 else set()
            relayed = tuple(self.sent[Stage.ADVERTISE, i] for i in sorted(near))
            body = messages.KeyList(relayed).encode()
            return server_message(self.spec, Stage.SHARE, index, body)

        self.server.key_list = narrowed
        return super().share()

    def take(self, index, message):
        body = open_signed(self.spec, message, Stage.SHARE, index)
        self.packets[index] = dict(messages.Packets.decode(body).packets)
        self.server._shared.add(index)

    def mail(self, index):
        self.server.stage = Stage.UPLOAD
        drew = {p.index: p.drew_us for p in self.state(Stage.UPLOAD, index).peers}
        near = {i for i in drew if i in self.packets}
        near = {i for i in near if not drew[i] or index in self.packets[i]}
        near -= self.hidden(index, near)
        sent = tuple((i, self.packets[i][index]) for i in sorted(near) if drew[i])
        body = messages.Mailbox(tuple(sorted((index, *near))), sent).encode()
        return server_message(self.spec, Stage.UPLOAD, index, body)


class Isolating(Lying):
    """Shows member 1 no sharers but t of its own draws, and then calls these dropouts."""

    def __init__(self, dice, seed):
        super().__init__(dice, seed, shares=2)
        self.gone = {}

    def hidden(self, index, members):
        if index != 1 or not self.packets:
            return set()
        self.gone = {Stage.UPLOAD: set(self.state(Stage.SHARE, 1).drawn[:2])}
        return set(members) - self.gone[Stage.UPLOAD]


def opened(r):
    """(owner, kind) of every secret that t shares, revealed or held by the colluding, open."""
    shares = {}
    for stage, i in r.sent:
        if stage == Stage.UNMASK:
            body = open_signed(r.spec, r.sent[stage, i], stage, i)
            for owner, kind, _ in messages.RevealedShares.decode(body).shares:
                shares.setdefault((owner, kind), set()).add(i)
    for i in COLLUDING:
        if (Stage.CONFIRM, i) in r.states:
            for held in r.state(Stage.CONFIRM, i).held:
                for kind in Kind:
                    shares.setdefault((held.owner, kind), set()).add(i)
    return {secret for secret, by in shares.items() if len(by) >= r.spec.share_threshold}


def learned(r):
    """The supports of all independent combinations of honest vectors that hold no unknown mask."""
    known, column = opened(r), {}
    rows = [i for i in HONEST if (Stage.CONFIRM, i) in r.states]
    masks = np.zeros((len(rows), 100))
    for row, i in enumerate(rows):
        if (i, Kind.SELF_SEED) not in known:
            masks[row, column.setdefault((i, i), len(column))] = 1
        for j in r.state(Stage.CONFIRM, i).sharers:
            pair = (min(i, j), max(i, j))
            if j == i or j in COLLUDING or {(i, Kind.MASK_KEY), (j, Kind.MASK_KEY)} & known:
                continue
            masks[row, column.setdefault(pair, len(column))] = 1 if i < j else -1
    # a combination a with a @ masks = 0: constant on components, as masks are edges' +1 and -1
    _, sizes, right = np.linalg.svd(masks.T, full_matrices=True)
    rank = int((sizes > 1e-9).sum())
    free = right[rank:]
    groups = {}
    for position, i in enumerate(rows):
        key = tuple(np.round(free[:, position], 6))
        if np.abs(free[:, position]).max(initial=0) > 1e-9:
            groups.setdefault(key, set()).add(i)
    assert len(groups) == len(free)
    return list(groups.values())


def run(seeds, server=Lying):
    """How many sums were learned, and those over sets that are not closed."""
    sums, open_sets = 0, []
    for seed in seeds:
        r = server(np.random.default_rng(seed), seed)
        try:
            r.until(Stage.DONE)
        except SecAggError:
            continue
        if any(
            len({*r.state(Stage.SHARE, i).drawn} & COLLUDING) >= r.spec.share_threshold
            for i in HONEST
        ):
            continue  # a closed set of one: the colluding open it, and know whom it masks with
        for members in learned(r):
            sums += 1
            draws = [{*r.state(Stage.SHARE, i).drawn} for i in members]
            if min(len(drawn & (members | COLLUDING)) for drawn in draws) < r.spec.share_threshold:
                open_sets.append((seed, members))
    return sums, open_sets


def test_every_sum_that_a_lying_server_learns_is_over_a_closed_set():
    sums, open_sets = run(range(150))
    assert sums > 20
    assert open_sets == []


def test_a_server_that_isolates_a_member_learns_nothing_of_it_thanks_to_notices(monkeypatch):
    assert run(range(12), Isolating)[1] == []
    monkeypatch.setattr(shown, "_require_notices", lambda *_: None)
    assert {1} in [members for _, members in run(range(12), Isolating)[1]]
