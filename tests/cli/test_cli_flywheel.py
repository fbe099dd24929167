"""`penstock flywheel` as a user runs it: one line for every mistake, and the way there and back."""

import msgspec
import pytest
from cache_worker import make_completion, make_key

from penstock.cache import CompletionCache, WholePrompt
from penstock.cli import main
from penstock.config import load_settings
from penstock.models.fingerprint import fingerprint
from penstock.tune.flywheel.check import Checked, Rehearsed
from penstock.tune.flywheel.gain import Option, Timings
from penstock.tune.flywheel.report import Report, as_json, lines, read_report
from penstock.tune.flywheel.student import Student
from penstock.tune.flywheel.weights import Weights, teachers_weights


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "penstock.toml"
    file.write_text('model = "builtin"\ntenants = false\n')
    return file


@pytest.fixture
def student(tmp_path):
    student = tmp_path / "student"
    student.mkdir()
    (student / "config.json").write_text("{}")
    return student


@pytest.fixture
def report(student):
    weights = Weights(teachers_weights(load_settings({}, {})), fingerprint(student))
    return Report(
        asked="builtin",
        teacher="builtin",
        read=1000,
        private=3,
        by_rule={"email": 2, "card": 1},
        repeated=97,
        distilled_on=450,
        routed_on=300,
        student=Student(str(student), 500, 12.5, 0.5, 0.7, 20),
        quality=0.95,
        delta=0.05,
        timed=64,
        concurrency=8,
        timings=Timings(6.4, 6.4, 5.0, 1.0, False),
        router=["**cascade: recommended**"],
        rehearsed=[
            Rehearsed(Option("predictive", 0.45, 0.4, 0.5, 0.6), Checked(200, 0.1, 0.11, 0.02, 0.6, 8)),
            Rehearsed(
                Option("cascade", 0.5, 0.45, 0.55, 0.6),
                Checked(200, 0.1, 0.055, 0.02, 0.61, 9),
                Checked(150, 0.1, 0.06, 0.03, 0.58, 6),
            ),
        ],
        objection=None,
        changes={"draft_model": "student"},
        machine="a machine",
        weights=weights,
    )


def written(report, folder):
    folder.mkdir()
    (folder / "flywheel.json").write_bytes(as_json(report))
    return folder


def test_a_report_says_what_was_expected_and_what_was_checked(report):
    assert read_report(as_json(report)) == report
    text = "\n".join(lines(report))
    assert "**Cascade: 1.67 times cheaper per answer, as checked; 1.82 was expected.**" in text
    assert "3 are left out for what rules found in them (card in 1, email in 2)" in text
    assert "| predictive | 2.22 [2.00, 2.50] | 0.91 (100.0 to 110.0 ms) | | 60% | 96.0% | 2% |" in text
    assert "| cascade | 2.00 [1.82, 2.22] | 1.82 (100.0 to 55.0 ms) | | 61% | 95.5% | 2% |" in text
    assert "| cascade | | | **1.67 (100.0 to 60.0 ms)** | 58% | 96.0% | 3% |" in text
    assert "| the student | 15.6 | 0.16 |" in text


def test_what_fails_its_check_is_told_beside_what_came_of_it(report):
    cascade = report.rehearsed[-1]
    failing = msgspec.structs.replace(cascade, checked=Checked(93, 0.1, 0.03, 0.03, 0.4, 18))
    drafts = Rehearsed(
        Option("drafts", 0.6, 0.6, 0.6),
        Checked(200, 0.1, 0.05, 0.02, 0.0, 0),
        Checked(93, 0.1, 0.04, 0.03, 0.0, 0),
    )
    refused = "cascade, checked: 18 of 93 answers say something else, too many for the promise 0.95"
    assert failing.objection(0.95) == refused and drafts.objection(0.95) is None
    text = "\n".join(lines(msgspec.structs.replace(report, rehearsed=[failing, drafts])))
    assert "**Drafts: 2.50 times cheaper per answer, as checked; 2.00 was expected.**" in text
    assert "| cascade | | | **3.33 (100.0 to 30.0 ms)** | 40% | 80.6% | 3% |" in text
    assert "| drafts | | | **2.50 (100.0 to 40.0 ms)** | 0% | 100.0% | 3% |" in text


def test_what_a_folder_holds_is_switched_on_and_back(report, file, tmp_path, capsys):
    folder, before = written(report, tmp_path / "out"), file.read_text()
    command = ["flywheel", "--config", str(file)]
    assert main([*command, "--output", str(folder)]) == 1
    assert "give --switch to put into service what the flywheel wrote there" in capsys.readouterr().err
    assert main([*command, "--output", str(folder), "--switch"]) == 0
    assert "Restart `penstock serve` for it" in capsys.readouterr().out
    assert 'draft_model = "student"' in file.read_text()
    file.write_text(file.read_text() + "max_num_seqs = 3\n")
    assert main([*command, "--back"]) == 1
    assert "+max_num_seqs = 3" in capsys.readouterr().err
    assert main([*command, "--back", "--force"]) == 0
    assert "lost: +max_num_seqs = 3" in capsys.readouterr().out
    assert file.read_text() == before
    assert main([*command, "--back"]) == 1
    assert "is put back already" in capsys.readouterr().err


def test_the_settings_file_that_the_environment_names_is_meant(report, file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PENSTOCK_CONFIG", str(file))
    assert main(["flywheel", "--output", str(written(report, tmp_path / "out")), "--switch"]) == 0
    assert "draft_model" in file.read_text()
    assert main(["flywheel", "--back"]) == 0
    assert "draft_model" not in file.read_text()


def test_keys_of_upstreams_are_where_they_are_when_it_is_served(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OTHER_KEY", "k")
    file.write_text('[upstreams.other]\nbase_url = "https://other.example/v1"\napi_key_env = "OTHER_KEY"\n')
    command = [
        "flywheel",
        "--config",
        str(file),
        "--output",
        str(tmp_path / "out"),
        "--cache-path",
        "/nowhere",
    ]
    assert main(command) == 1
    assert "There is no cache at /nowhere" in capsys.readouterr().err


def test_what_gained_nothing_or_is_of_another_model_is_not_switched_on(report, file, tmp_path, capsys):
    for name, changed, says in (
        ("a", {"objection": "no faster"}, "is not to be switched on: no faster."),
        ("b", {"teacher": "other"}, "was made for the model 'other', and 'builtin' is served now"),
    ):
        folder = written(msgspec.structs.replace(report, **changed), tmp_path / name)
        assert main(["flywheel", "--config", str(file), "--output", str(folder), "--switch"]) == 1
        assert says in capsys.readouterr().err
    assert not (tmp_path / "penstock.toml.before").exists()


def test_what_other_weights_were_measured_with_is_not_switched_on(report, student, file, tmp_path, capsys):
    command = [
        "flywheel",
        "--config",
        str(file),
        "--output",
        str(written(report, tmp_path / "out")),
        "--switch",
    ]

    def refusal():
        assert main(command) == 1
        return capsys.readouterr().err

    text = file.read_text()
    file.write_text(text + 'quantize = "none"\n')
    assert "The model 'builtin' has other weights, or another precision," in refusal()
    file.write_text(text)
    (student / "config.json").write_text('{"layers": 2}')
    assert f"The student in {student} has other weights" in refusal()
    student.rename(tmp_path / "elsewhere")
    assert f"The student is not in {student} any more" in refusal()
    old = msgspec.structs.replace(report, weights=None)
    (tmp_path / "out" / "flywheel.json").write_bytes(as_json(old))
    assert "does not say which weights it was made with" in refusal()
    assert file.read_text() == text and not (tmp_path / "penstock.toml.before").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "output is missing"),
        (["--output", "o", "--switch"], "There is no settings file to switch; name it with --config."),
        (["--output", "o", "--minutes", "0"], "minutes is 0.0; it must be above 0."),
        (["--output", "o", "--quality", "1"], "quality is 1.0; it must be between 0 and 1."),
        (["--output", "o", "--force"], "force is for --back"),
        (["--output", "o", "--tenant", "a", "--tenant", "b"], "A student learns from one tenant's traffic"),
        (["--output", "o", "--keep-pii", "names"], "no rule is called so"),
        (["--output", "o", "--student", "./nowhere"], "no such folder"),
        (["--output", "o", "--cache-path", "/nowhere"], "There is no cache at /nowhere"),
        (["--back"], "Name the settings file that is to be put back with --config."),
    ],
)
def test_a_mistake_is_one_line(options, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["flywheel", *options]) == 1
    error = capsys.readouterr().err
    assert says in error and error.startswith("penstock flywheel: ") and not (tmp_path / "o").exists()


def test_too_little_traffic_is_refused_and_private_things_are_never_shown(tmp_path, capsys):
    with CompletionCache(tmp_path / "cache") as cache:
        for number in range(20):
            asked = [
                {
                    "role": "user",
                    "content": f"how {chr(97 + number)}, asks jane@example.org" if number else "x",
                }
            ]
            cache.store(
                make_key(number, "acme"), make_completion(number, 20), prompt=WholePrompt("m", messages=asked)
            )
        cache.flush()
    output = tmp_path / "out"
    command = [
        "flywheel",
        "--output",
        str(output),
        "--cache-path",
        str(tmp_path / "cache"),
        "--tenant",
        "acme",
    ]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "20 examples of tenant 'acme' from the cache" in error
    assert "1 different questions are left, and 400 are needed" in error and "cache_prompts = true" in error
    assert not output.exists()
    # When there is more traffic, it is read anew.
    assert not (tmp_path / ".out.work").exists()
