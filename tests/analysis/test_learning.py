"""A drafter's model card and learning curve come from its training's log alone."""

import json

import pandas

from analysis.learning import CSV, CURVE, POINTS, learning_curve, main
from runners.store import SITTINGS_FILE


def trained(folder, steps: int) -> None:
    lines = [{"step": n, "tokens": 100 * n, "loss": 10.0 / n, "top1": [n / 1000, 0.1]} for n in range(1, steps + 1)]
    lines[-1]["held_out"] = {"acceptance": [0.5, 0.25], "chain": 1.625}  # 1 + 0.5 + 0.5 x 0.25
    (folder / CURVE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    corpus = {
        "window": 512,
        "sources": [{"package": "chats", "package_version": "1.0"}, {"path": "/home/me/mine.jsonl", "repeat": 3}],
    }
    config = {"training": {"kind": "eagle3", "corpus": corpus}, "drafter": {"path": "x"}}
    sitting = {"step": 0, "target": "tiny, seeded", "command": "python -m runners.train_drafter", "git_commit": "abc"}
    (folder / SITTINGS_FILE).write_text(json.dumps([sitting | {"config": config}]))


def test_the_card_says_data_steps_command_and_acceptance(tmp_path, capsys):
    trained(tmp_path, 10)
    assert main([str(tmp_path)]) == 0
    text = (tmp_path / "README.md").read_text()
    for wanted in (
        "PyPI chats 1.0, mine.jsonl (3 times)",
        "10 steps, 1,000 tokens",
        "runners.train_drafter",
        "50.0%, 25.0%",
        "1.62",
    ):
        assert wanted in text
    assert "/home/me" not in text
    assert "<svg" in (tmp_path / "learning_curve.svg").read_text()


def test_the_card_says_what_was_changed_on_the_way(tmp_path):
    trained(tmp_path, 10)
    (first,) = json.loads((tmp_path / SITTINGS_FILE).read_text())
    training = first["config"]["training"]
    second = json.loads(json.dumps(first)) | {"step": 6}
    corpus = training["corpus"] | {"sources": [{"path": "own.jsonl"}]}
    second["config"]["training"] |= {"passes": 2, "steps": 9, "corpus": corpus}
    (tmp_path / SITTINGS_FILE).write_text(json.dumps([first, first | {"step": 3}, second]))
    assert main([str(tmp_path)]) == 0
    (line,) = [line for line in (tmp_path / "README.md").read_text().splitlines() if "changed" in line]
    text = "PyPI chats 1.0 and mine.jsonl (3 times) -> own.jsonl"
    assert line == f"- changed on the way: from step 6 on passes 1 -> 2, text {text}"


def test_a_long_log_is_kept_short_and_the_short_one_draws_the_same(tmp_path):
    trained(tmp_path, 3 * POINTS + 1)
    main([str(tmp_path)])
    short = pandas.read_csv(tmp_path / CSV)
    assert len(short) <= POINTS
    assert short["tokens"].iloc[-1] == 100 * (3 * POINTS + 1)
    assert short["chain"].dropna().tolist() == [1.625]
    (tmp_path / CURVE).unlink()
    pandas.testing.assert_frame_equal(learning_curve(tmp_path), short)


def test_a_training_that_went_on_from_published_weights_keeps_their_curve(tmp_path):
    trained(tmp_path, 10)
    log = (tmp_path / CURVE).read_text().splitlines(keepends=True)
    (tmp_path / CURVE).write_text("".join(log[4:]))
    (sitting,) = json.loads((tmp_path / SITTINGS_FILE).read_text())
    sitting["config"]["training"]["eval_steps"] = 1
    (tmp_path / SITTINGS_FILE).write_text(json.dumps([sitting, sitting | {"step": 4}]))
    (tmp_path / CSV).write_text("tokens,loss,top1,chain\n200,5,0.1,1.5\n400,4,0.2,\n500,9,0.9,9\n")
    for _ in range(2):
        assert main([str(tmp_path)]) == 0
        curve = pandas.read_csv(tmp_path / CSV)
        assert curve["tokens"].tolist() == [200, 400, *range(500, 1001, 100)]
        assert curve["loss"].tolist()[:3] == [5, 4, 2], "what the log tells is taken from it"
        assert curve["chain"].dropna().tolist() == [1.5, 1.5], "both of a chain of one, as the first sitting evaluated"
    assert "chain of 1," in (tmp_path / "learning_curve.svg").read_text().replace("&#32;", " ")


def test_a_folder_without_a_training_is_one_clear_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "give the output folder of runners.train_drafter" in capsys.readouterr().err
