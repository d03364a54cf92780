"""Write tests/vectors/secagg/*.json anew: `python -m tests.secagg.record_vectors`.

Only when the protocol's bytes change on purpose: a diff of these files is a change of the format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from tests.secagg import mutations
from tests.secagg.transcripts import FOLDER, ROUNDS, Recorded, record

BAD: dict[str, tuple[str, str, Callable[..., Iterator[mutations.Bad]]]] = {
    "bad-to-clients": ("complete-lost-at-upload", "client", mutations.to_clients),
    "bad-to-sparse-clients": ("sparse", "client", mutations.to_sparse_clients),
    "bad-to-server": ("complete-lost-at-upload", "server", mutations.to_server),
}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    good = {name: record(name) for name in ROUNDS}
    bad = {}
    for name, (base, to, make) in BAD.items():
        r = Recorded(good[base])
        r.run()
        cases = [
            {
                "name": title,
                "stage": stage.name,
                "member": member,
                "hex": data.hex(),
                "check": check,
            }
            for title, stage, member, data, check in make(r)
        ]
        bad[name] = {"transcript": base, "to": to, "cases": cases}
    for name, document in (good | bad).items():
        (FOLDER / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
