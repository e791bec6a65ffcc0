"""Judging by rule and by an endpoint, against a local server that fails in every way a judge can."""

import http.server
import json
import socket
import threading
import time
import warnings
from types import SimpleNamespace

import pytest

from lab.errors import LabError
from lab.evaluation.judge import Deterministic, Endpoint, Question, grade_answers, judge_pairs, overlap

KEY = "sk-this-is-secret"
QUESTION = Question("q1", "What carries the oil?", "Oil flows {through} the copper pipe.", "the copper pipe")
ANSWERS = {"cat": ["the copper pipe"], "ties": ["a pump"]}


def better(prompt: str) -> str:
    """What an honest judge says: the candidate with the gold's words is better."""
    if "<candidate_1>" not in prompt:
        return "Points: 2"
    first = prompt.split("<candidate_1>")[1].split("</")[0]
    return f"Points 1: 2/3\nPoints 2: 1\n**Better: {1 if 'copper' in first else 2}**"


class Server:
    """A chat completions endpoint on this machine. `replies`: status, or text, or raw bytes, or a function of the
    prompt, taken in turn; the last one stays.
    """

    def __init__(self):
        self.replies, self.requests, self.headers, self.delay = [better], [], [], 0.0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, body))
                outer.headers.append(dict(self.headers))
                reply = outer.replies.pop(0) if len(outer.replies) > 1 else outer.replies[0]
                reply = reply(body["messages"][0]["content"]) if callable(reply) else reply
                status, headers = 200, {}
                if isinstance(reply, tuple):
                    reply, headers = reply
                if isinstance(reply, int):
                    status, reply = reply, f"no: {self.headers.get('Authorization')}".encode()
                if isinstance(reply, str):
                    reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": reply}}]}).encode()
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(reply)))
                    self.end_headers()
                    for at in range(0, len(reply), 1 + len(reply) // 4):
                        time.sleep(outer.delay)
                        self.wfile.write(reply[at : at + 1 + len(reply) // 4])
                        self.wfile.flush()
                except OSError:  # the client went away
                    pass

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def judge(self, **changes) -> Endpoint:
        return Endpoint(**({"url": self.url, "model": "some-model", "wait": 0.01, "timeout": 30.0} | changes))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("SOUP_LAB_JUDGE_KEY", raising=False)
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


def outcome(judge, answers=ANSWERS, **more):
    (vote,) = judge_pairs([QUESTION], answers, judge, **more)
    assert (vote.question, vote.first, vote.second) == ("q1", *answers)
    return vote.outcome


# The deterministic judge


def test_overlap_as_squad_counts():
    assert overlap("The copper pipe.", "copper pipe") == (1.0, 1.0)
    assert overlap("a pump", "the copper pipe") == (0.0, 0.0)
    f1, recall = overlap("oil goes through copper", "copper pipe")
    assert (f1, recall) == (pytest.approx(2 * 1 / 6), 0.5)
    assert overlap("pipe pipe pipe", "copper pipe")[1] == 0.5  # a word counts as often as the gold has it
    assert overlap("", "copper") == (0.0, 0.0) and overlap("...", "the") == (1.0, 1.0)
    assert overlap("RPKM", "reads per kilobase\nRPKM\n") == (1.0, 1.0)  # the best of the wordings
    assert overlap("not in the pipe", "Not in context") == (0.0, 0.0)  # all or nothing


@pytest.mark.parametrize(
    "first, second, threshold, expected",
    [
        ("copper pipe", "a pump", 0.05, "first"),
        ("a pump", "copper pipe", 0.05, "second"),
        ("copper pipe", "The copper pipe!", 0.05, "tie"),
        ("a pump", "the sun and the moon", 0.05, "tie"),  # both wrong: length decides nothing
        ("copper", "x y copper pipe z w", 0.05, "first"),  # F1 2/3 against 1/2
        ("copper", "x y copper pipe z w", 0.2, "second"),  # no difference in F1 then: recall 1/2 against 1
    ],
)
def test_deterministic_rule(first, second, threshold, expected):
    assert Deterministic(threshold).compare(QUESTION, first, second).value == expected


def test_below_the_threshold_is_a_tie():
    longer = Question("q", "?", "", " ".join(f"w{i}" for i in range(50)))
    nearly = " ".join(f"w{i}" for i in range(49))
    assert Deterministic(0.05).compare(longer, longer.gold, nearly).value == "tie"
    assert Deterministic(0.01).compare(longer, longer.gold, nearly).value == "first"


def test_deterministic_grades():
    for text, points in (("It is the copper pipe", 2.0), ("a pipe", 1.0), ("oil", 0.0)):
        assert Deterministic().grade(QUESTION, text).value == points


def test_pairs_unscored_answers_and_their_order(tmp_path):
    questions = [QUESTION, Question("q2", "And the water?", "", "the hose")]
    answers = {"cat": ["copper pipe", "hose"], "ties": ["pump", None], "mix": ["copper pipe", "tap"]}
    votes = judge_pairs(questions, answers, Deterministic(), log=tmp_path / "log.jsonl")
    assert [(v.question, v.first, v.second, v.outcome) for v in votes] == [
        ("q1", "cat", "ties", "first"), ("q1", "cat", "mix", "tie"), ("q1", "ties", "mix", "second"),
        ("q2", "cat", "ties", None), ("q2", "cat", "mix", "first"), ("q2", "ties", "mix", None),
    ]  # fmt: skip
    assert judge_pairs(questions, answers, Deterministic(), pairs=[("mix", "cat")])[1].outcome == "second"


def test_bad_input_names_the_thing():
    cases = [
        (([Question("q7", "?", "c", " ")], {"a": ["x"]}), "Question 'q7' has no gold answer"),
        (([QUESTION, QUESTION], {"a": ["x", "y"]}), "2 questions are called 'q1'"),
        (([QUESTION], {"cat": []}), "'cat' has 0 answers to 1 questions"),
    ]
    for (questions, answers), message in cases:
        with pytest.raises(LabError, match=message):
            judge_pairs(questions, answers, Deterministic())
    with pytest.raises(LabError, match="no answers of 'nobody'"):
        judge_pairs([QUESTION], ANSWERS, Deterministic(), pairs=[("cat", "nobody")])


# The endpoint


def test_both_orders_are_asked_with_everything_the_judge_needs(server):
    assert outcome(server.judge()) == "first"
    assert outcome(server.judge(), dict(reversed(ANSWERS.items()))) == "second"
    (path, body), (_, other) = server.requests[:2]
    assert path == "/v1/chat/completions" and body["model"] == "some-model" and body["temperature"] == 0
    prompt, swapped = body["messages"][0]["content"], other["messages"][0]["content"]
    for text in (QUESTION.question, QUESTION.context, QUESTION.gold):
        assert text in prompt and text in swapped
    assert prompt.index("a pump") > prompt.rindex("the copper pipe")
    assert swapped.index("a pump") < swapped.rindex("the copper pipe")


def test_a_judge_that_prefers_a_place_gives_ties(server):
    server.replies = ["Points 1: 3\nPoints 2: 0\nBetter: 1"]
    assert outcome(server.judge()) == "tie" and len(server.requests) == 2


def test_equal_answers_are_a_tie_without_asking(server):
    assert outcome(server.judge(), {"cat": ["a pump"], "ties": [" a pump\n"]}) == "tie" and not server.requests


def test_thinking_aloud_is_not_the_verdict(server):
    server.replies = [lambda prompt: "<think>Better: 1\nBetter: 2</think>" + better(prompt)]
    assert outcome(server.judge()) == "first"


def test_slow_server_is_unscored(server):
    server.delay = 0.25  # each piece comes within the limit, the whole does not
    began = time.monotonic()
    with pytest.warns(UserWarning, match=r"2 of 2 verdicts of some-model .* unscored: no reply within 0\.4 s, 2 tries"):
        assert outcome(server.judge(timeout=0.4, tries=2)) is None
    assert time.monotonic() - began < 10


def test_429_then_ok_waits_as_long_as_asked(server, monkeypatch):
    pauses = []
    monkeypatch.setattr("lab.evaluation.judge.time", SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic))
    server.replies = [429, (429, {"Retry-After": "7"}), (503, {"Retry-After": "100000"}), better]
    assert outcome(server.judge(wait=1.0)) == "first" and len(server.requests) == 5
    assert pauses == [1.0, 7.0, 60.0]


def test_500_for_ever_is_unscored_and_soon_not_asked(server):
    server.replies = [500]
    questions = [Question(f"q{i}", "?", "c", "gold") for i in range(20)]
    words = r"40 of 40 verdicts .*not asked, after 3 .*\(37\); it replied 500 .*2 tries \(3\)"
    with pytest.warns(UserWarning, match=words):
        votes = judge_pairs(questions, {"a": ["x"] * 20, "b": ["y"] * 20}, server.judge(tries=2))
    assert [v.outcome for v in votes] == [None] * 20 and len(server.requests) == 6


@pytest.mark.parametrize(
    "reply",
    [
        "I cannot decide.", "Better: 3", "Better: 1\nBetter: 2", "", b"<html>", b"", b"[]", b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
    ],
)  # fmt: skip
def test_nonsense_is_unscored(server, reply):
    server.replies = [reply]
    with pytest.warns(UserWarning, match="2 of 2 verdicts .* unscored"):
        assert outcome(server.judge()) is None
    assert len(server.requests) == 2  # no other try: it would say the same


def test_one_nonsense_order_makes_the_pair_unscored(server):
    server.replies = ["Better: 1", "hm"]
    with pytest.warns(UserWarning, match=r"1 of 2 verdicts .* unscored: its reply holds no verdict \(1\)"):
        assert outcome(server.judge()) is None


def test_a_refused_request_is_unscored_a_refused_key_ends_the_run(server, monkeypatch):
    server.replies = [400]
    with pytest.warns(UserWarning, match="it replied 400"):
        assert outcome(server.judge()) is None
    monkeypatch.setenv("SOUP_LAB_JUDGE_KEY", KEY)
    for status in (401, 403, 404):
        server.replies = [status]
        words = rf"cannot be used: it replied {status} .*environment variable SOUP_LAB_JUDGE_KEY"
        with pytest.raises(LabError, match=words) as caught:
            outcome(server.judge())
        assert KEY not in str(caught.value)


def test_the_key_is_sent_and_written_nowhere(server, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_KEY", KEY + "\n")
    judge, log = server.judge(key_variable="MY_KEY", tries=1), tmp_path / "log.jsonl"
    server.replies = [lambda prompt: f"Your key is {KEY}.\nBetter: 1", 500]  # the server's error repeats it too
    with pytest.warns(UserWarning) as warned:
        outcome(judge, log=log)
    assert [headers["Authorization"] for headers in server.headers] == [f"Bearer {KEY}"] * 2
    written = log.read_text()
    assert len(written.splitlines()) == 2 and "[key]" in written
    for text in (written, repr(judge), judge.identity, str(judge.__dict__), *(str(w.message) for w in warned)):
        assert KEY not in text
    monkeypatch.setenv("MY_KEY", "two words")
    with pytest.raises(LabError, match="The key in the environment variable MY_KEY cannot be sent") as caught:
        outcome(judge)
    assert "two words" not in str(caught.value)


def test_no_key_no_header(server):
    outcome(server.judge())
    assert "Authorization" not in server.headers[0]


def test_an_interrupted_run_goes_on_without_asking_again(server, tmp_path):
    log, questions = tmp_path / "logs" / "log.jsonl", [QUESTION, Question("q2", "And the water?", "", "copper hose")]
    answers = {"cat": ["the copper pipe", "copper hose"], "ties": ["a pump", "tap"]}
    seen = []

    def stop(done, of):
        seen.append((done, of))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge_pairs(questions, answers, server.judge(), log=log, progress=stop)
    assert len(server.requests) == 3 and seen == [(i, 4) for i in range(4)]
    log.write_text(log.read_text() + '{"key": "half a li')
    with pytest.warns(UserWarning, match="log.jsonl, and left out: line 4"):
        votes = judge_pairs(questions, answers, server.judge(), log=log)
    assert [v.outcome for v in votes] == ["first", "first"] and len(server.requests) == 4
    with pytest.warns(UserWarning, match="line 4"):
        assert judge_pairs(questions, answers, server.judge(), log=log) == votes and len(server.requests) == 4
    log.write_text("".join(line for line in log.read_text().splitlines(keepends=True) if "half a li" not in line))
    # Another answer, model or question is another matter.
    judge_pairs(questions, answers | {"ties": ["a pump", "well"]}, server.judge(), log=log)
    assert len(server.requests) == 6
    judge_pairs(questions, answers, server.judge(model="other"), log=log)
    assert len(server.requests) == 10


def test_a_log_keeps_answers_that_hold_other_kinds_of_line_ends(server, tmp_path):
    log, answers = tmp_path / "log.jsonl", {"cat": ["the copper\u2028pipe"], "ties": ["a\x85pump"]}
    for _ in range(2):
        assert judge_pairs([QUESTION], answers, server.judge(), log=log)[0].outcome == "first"
    assert len(server.requests) == 2


def test_what_was_unscored_is_asked_again(server, tmp_path):
    server.replies = ["hm"]
    with pytest.warns(UserWarning):
        assert outcome(server.judge(), log=tmp_path / "log.jsonl") is None
    server.replies = [better]
    assert outcome(server.judge(), log=tmp_path / "log.jsonl") == "first"


def test_a_foreign_log_gives_no_verdicts_and_an_unwritable_one_says_so(server, tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'\xff\xfe\n[1]\n"x"\n{"key": "k"}\n{"key": [], "value": "first"}\n')
    with pytest.warns(UserWarning, match="left out: line 1, 2, 3, 4"):
        assert outcome(server.judge(), log=log) == "first" and len(server.requests) == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="Could not write the judge's log"):
        outcome(server.judge(), log=tmp_path / "file" / "log.jsonl")


def test_unreachable_host_is_unscored_with_one_sentence():
    with socket.socket() as held:  # bound, not listening: refused
        held.bind(("127.0.0.1", 0))
        judge = Endpoint(f"http://127.0.0.1:{held.getsockname()[1]}", "m", wait=0.0, tries=2)
        with pytest.warns(UserWarning) as warned:
            assert outcome(judge) is None
        assert len(warned) == 1 and "could not be reached" in str(warned[0].message)
        with pytest.raises(LabError, match=r"made no questions: it could not be reached .*, 2 tries\."):
            judge.make_questions("A passage.", 2)


def test_only_the_users_own_url_is_contacted(server, monkeypatch):
    elsewhere = Server()
    try:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, elsewhere.url.removesuffix("/v1"))
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert outcome(server.judge()) == "first"
        for status in (301, 302, 307, 308):
            server.replies = [(status, {"Location": elsewhere.url + "/chat/completions"})]
            with pytest.raises(LabError, match=f"cannot be used: it replied {status}"):
                outcome(server.judge())
        # What is judged may name addresses; nobody goes there.
        server.replies = [better]
        outcome(server.judge(), {"cat": [f"the copper pipe, see {elsewhere.url}"], "ties": [f"![]({elsewhere.url})"]})
        assert not elsewhere.requests
    finally:
        elsewhere.server.shutdown()
        elsewhere.server.server_close()


def test_the_url_may_name_the_whole_path(server):
    assert outcome(server.judge(url=server.url + "/chat/completions/")) == "first"
    assert server.requests[0][0] == "/v1/chat/completions"


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000", "file:///etc/passwd", "http://", "http://me:secret@host/v1", "https://host/v1?key=secret",
        "http://h/\n", "", None,
    ],
)  # fmt: skip
def test_bad_urls(url):
    with pytest.raises(LabError, match="The judge's url must be like") as caught:
        Endpoint(url, "m")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "bad", [{"model": ""}, {"timeout": 0}, {"tries": 0}, {"wait": -1}, {"options": {"model": "x"}}]
)
def test_bad_settings(bad):
    with pytest.raises(LabError):
        Endpoint(**({"url": "http://localhost", "model": "m"} | bad))


def test_grades(server, tmp_path):
    judge = server.judge()
    replies = {"0.5": 0.5, "2/2": 2.0, "3": None, "-1": None, "1\nPoints: 2": None, "many": None}
    for reply, expected in replies.items():
        server.replies = [f"Points: {reply}"]
        assert judge.grade(QUESTION, "a pump").value == expected
    server.replies = ["Points: 1.5"]
    answers = {"cat": ["the copper pipe"], "ties": [None]}
    for _ in range(2):
        with warnings.catch_warnings(action="error"):
            points = grade_answers([QUESTION], answers, judge, log=tmp_path / "log.jsonl")
        assert points == {"cat": [1.5], "ties": [None]}
    assert len(server.requests) == len(replies) + 1
    prompt = server.requests[-1][1]["messages"][0]["content"]
    assert all(text in prompt for text in (QUESTION.context, QUESTION.question, QUESTION.gold, "the copper pipe"))


def test_making_questions(server):
    judge = server.judge()
    rows = [
        {"question": "What {carries} oil?", "answer": "The pipe"}, {"question": "Where?", "answer": "In [here]"},
        {"question": " "}, 3,
    ]  # fmt: skip
    server.replies = [f"Here they are:\n```json\n{json.dumps(rows)}\n```"]
    made = judge.make_questions("A passage of {braces}.", 2)
    assert [(q.question, q.gold, q.context) for q in made] == [
        ("What {carries} oil?", "The pipe", "A passage of {braces}."), ("Where?", "In [here]", "A passage of {braces}.")
    ]  # fmt: skip
    assert len({q.id for q in made}) == 2
    with pytest.raises(LabError, match="made 2 usable questions of 3, its reply beginning 'Here"):
        judge.make_questions("A passage.", 3)
    for nonsense in ("Sorry, no.", "[", "[[[", "{}", '[{"question": 1, "answer": 2}]', '["a", "b"]'):
        server.replies = [nonsense]
        with pytest.raises(LabError, match="made 0 usable questions of 1"):
            judge.make_questions("A passage.", 1)
    with pytest.raises(LabError, match="not empty"):
        judge.make_questions(" \n", 1)
