"""Keys that a server forges, replays, swaps, repeats, or chooses so that everybody knows them."""

from dataclasses import replace

import pytest

from fedattn.secagg import client
from fedattn.secagg.wire import Stage, server_message
from fedattn.signing import SigningKey
from tests.attacks.adversary import (
    RNG,
    advert,
    advertised,
    adverts,
    key_list,
    refuses,
    step,
    with_advert,
)
from tests.secagg.harness import sha

STRANGER = SigningKey.generate(RNG)


def refused(check, r, relayed):
    """Every other member refuses the list, so that no packet is made for a key in it."""
    for i in (1, 2, 4):
        refuses(check, step, r, Stage.SHARE, i, relayed)


def test_forging_a_members_keys(finished):
    r = finished
    server_made = advert(r, 3, identity=STRANGER, mask_key=advertised(r, 5).mask_key)
    refused("message.signature", r, with_advert(r, 3, server_made))


def test_leaving_keys_unsigned(finished):
    unsigned = adverts(finished)[2][:-64] + bytes(64)
    refused("message.signature", finished, with_advert(finished, 3, unsigned))


def test_altering_one_bit_of_signed_keys(finished):
    for place in (40, 80, 120):
        message = bytearray(adverts(finished)[2])
        message[place] ^= 1
        refused("message.signature", finished, with_advert(finished, 3, bytes(message)))


def test_signing_one_members_keys_by_another(finished):
    swapped = advert(finished, 3, identity=finished.keys[5])
    refused("message.signature", finished, with_advert(finished, 3, swapped))


def test_putting_one_members_signed_keys_in_anothers_place(finished):
    relayed = adverts(finished)
    relayed[2], relayed[4] = relayed[4], relayed[2]
    refused("keys.distinct", finished, key_list(finished, relayed))
    renamed = bytearray(adverts(finished)[4])
    renamed[3:7] = (3).to_bytes(4, "big")
    refused("message.signature", finished, with_advert(finished, 3, bytes(renamed)))


def test_replaying_an_old_rounds_keys(finished):
    old = replace(finished.spec, instruction_hash=sha("old round"))
    replayed = advert(finished, 3, spec=old)
    refused("message.instruction", finished, with_advert(finished, 3, replayed))
    renamed = replayed[:7] + finished.spec.instruction_hash + replayed[39:]
    refused("message.signature", finished, with_advert(finished, 3, renamed))


def test_passing_another_stages_message_as_keys(finished):
    packets = finished.sent[Stage.SHARE, 3]
    refused("message.stage", finished, with_advert(finished, 3, packets))


def test_passing_the_servers_own_message_as_a_members(finished):
    body = adverts(finished)[2][39:]
    as_server = server_message(finished.spec, Stage.ADVERTISE, 3, body)
    refused("message.role", finished, with_advert(finished, 3, as_server))


def test_adding_keys_of_a_member_that_is_not_in_the_roster(finished):
    sixth = advert(finished, 5, identity=STRANGER, index=6)
    refused("keys.subset", finished, key_list(finished, [*adverts(finished), sixth]))


def test_replacing_a_victims_own_keys_by_others_it_signed(finished):
    """A second advertisement, however it was got, is not what the victim masks with."""
    _, again = client.advertise(finished.spec, 1, finished.keys[1], RNG)
    refuses("keys.own", step, finished, Stage.SHARE, 1, with_advert(finished, 1, again))


LOW_ORDER = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    2**255 - 20,
]
OTHER_ENCODINGS = [2**255 - 19, 2**255 - 18, 2**255 - 19 + 9, 2**255 + 9, 2**256 - 1]


@pytest.mark.parametrize("purpose", ["mask_key", "transport_key"])
@pytest.mark.parametrize("point", LOW_ORDER)
def test_a_low_order_point_whose_agreements_everybody_knows(finished, purpose, point):
    message = advert(finished, 3, **{purpose: point.to_bytes(32, "little")})
    refused("keys.point", finished, with_advert(finished, 3, message))


@pytest.mark.parametrize("purpose", ["mask_key", "transport_key"])
@pytest.mark.parametrize("point", OTHER_ENCODINGS)
def test_another_encoding_of_a_point_that_would_pass_as_another_key(finished, purpose, point):
    message = advert(finished, 3, **{purpose: point.to_bytes(32, "little")})
    refused("keys.point", finished, with_advert(finished, 3, message))


def test_one_key_for_masking_and_for_transport(finished):
    """Reconstructing it would open the packets sent to its owner."""
    message = advert(finished, 3, mask_key=advertised(finished, 3).transport_key)
    refused("keys.repeated", finished, with_advert(finished, 3, message))


def test_a_peer_that_names_its_neighbours_in_a_complete_graph(finished):
    message = advert(finished, 3, out_neighbours=(1,))
    refused("keys.neighbours", finished, with_advert(finished, 3, message))
