import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedattn.config import Fault
from fedattn.flower.embedded.contexts import LazyNodes
from fedattn.flower.grid import EmbeddedGrid


def echo_app():
    app = ClientApp()

    @app.query("advertise")
    def advertise(message, context):
        seen = context.state.config_records.get("seen", ConfigRecord({"count": 0}))
        context.state["seen"] = ConfigRecord({"count": seen["count"] + 1})
        content = {"node": context.node_id, "count": seen["count"] + 1}
        return Message(RecordDict({"r": ConfigRecord(content)}), reply_to=message)

    @app.train("upload")
    def upload(message, context):
        raise ValueError("what went wrong")

    return app


def grid(faults=(), taps=()):
    nodes = {node: {"partition-id": node} for node in (7, 5, 9)}
    return EmbeddedGrid(echo_app(), nodes, faults=faults, taps=taps)


def ask(engine, message_type="query.advertise", group="1"):
    messages = [
        engine.create_message(RecordDict(), message_type, node, group)
        for node in engine.get_node_ids()
    ]
    return list(engine.send_and_receive(messages))


def test_messages_reach_the_action_that_their_type_names_and_replies_name_their_node():
    replies = ask(grid())
    assert [reply.metadata.src_node_id for reply in replies] == [5, 7, 9]
    assert [reply.content["r"]["node"] for reply in replies] == [5, 7, 9]


def test_a_clients_state_lasts_from_message_to_message():
    engine = grid()
    ask(engine)
    assert [reply.content["r"]["count"] for reply in ask(engine)] == [2, 2, 2]


def test_an_exception_is_an_error_reply_as_on_the_wire():
    reply = ask(grid(), "train.upload")[0]
    assert reply.has_error()
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert reply.error.reason == "<class 'ValueError'>:<'what went wrong'>"


def test_an_unknown_action_is_an_error_reply():
    assert all(reply.has_error() for reply in ask(grid(), "query.nothing"))


def test_content_crosses_as_bytes_so_that_no_object_is_shared():
    engine = grid()
    content = RecordDict({"r": ConfigRecord({"x": [1, 2]})})
    caught = []
    engine._client_app = lambda message, context: (
        caught.append(message.content) or Message(RecordDict(), reply_to=message)
    )
    message = engine.create_message(content, "query.advertise", 5, "1")
    list(engine.send_and_receive([message]))
    assert caught[0]["r"]["x"] == [1, 2]
    assert caught[0]["r"] is not content["r"]


def test_a_reply_is_made_when_it_is_pulled_and_once():
    engine = grid()
    messages = [engine.create_message(RecordDict(), "query.advertise", 5, "1")]
    ids = list(engine.push_messages(messages))
    replies = list(engine.pull_messages(ids))
    assert replies[0].metadata.reply_to_message_id == ids[0]
    assert list(engine.pull_messages(ids)) == []


@pytest.mark.parametrize(
    ("stage", "group", "gone"),
    [("advertise", "1", [5]), ("upload", "1", []), ("advertise", "2", [])],
)
def test_a_fault_takes_the_first_devices_at_its_stage_of_its_round(stage, group, gone):
    replies = ask(grid([Fault(round=1, stage=stage, clients=1)]), group=group)
    lost = [reply.metadata.src_node_id for reply in replies if reply.has_error()]
    assert lost == gone
    codes = {reply.error.code for reply in replies if reply.has_error()}
    assert codes <= {ErrorCode.NODE_UNAVAILABLE}


def test_who_vanished_stays_away_for_the_rest_of_the_round_and_is_not_even_asked():
    seen = []
    engine = grid([Fault(round=1, stage="advertise", clients=1)], [seen.append])
    ask(engine)
    replies = ask(engine, "train.upload")
    assert replies[0].error.code == ErrorCode.NODE_UNAVAILABLE
    assert [m.metadata.message_type for m in seen if m.metadata.dst_node_id == 5] == [
        "query.advertise"
    ]


def test_a_client_that_answers_nothing_is_an_error_reply():
    engine = EmbeddedGrid(lambda message, context: None, {5: {}})
    (reply,) = ask(engine)
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert engine._contexts.held == 0


def test_nodes_are_looked_at_one_by_one_and_those_of_faults_are_the_first():
    looked_at = []
    nodes = LazyNodes(range(5, 100_005), lambda node: looked_at.append(node) or {"partition-id": 1})
    engine = EmbeddedGrid(echo_app(), nodes, faults=[Fault(round=1, stage="advertise", clients=2)])
    assert engine.get_node_ids() == range(5, 100_005)
    assert looked_at == []
    replies = {}
    for node in (5, 6, 7, 100_004):
        message = engine.create_message(RecordDict(), "query.advertise", node, "1")
        (replies[node],) = engine.send_and_receive([message])
    assert [node for node, reply in replies.items() if reply.has_error()] == [5, 6]
    assert set(looked_at) == {5, 6, 7, 100_004}
    assert engine._contexts.held == 4
    assert list(engine._contexts[7].state) == ["seen"]
