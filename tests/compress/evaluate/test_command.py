"""Commands are the same where their words say so, however flags are bundled; in doubt they are different."""

import pytest

from penstock.compress.evaluate.command import same_command


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("ls -la", "ls -a -l"),
        ("ls  -l   /tmp", "ls /tmp -l"),
        ("tar -xzf a.tgz", "tar xzf a.tgz"),
        ("tar -xzf a.tgz", "tar -f a.tgz -z -x"),
        ("grep -rn 'two words' .", 'grep -n -r "two words" .'),
        ("cat a|sort -u>b", "cat a | sort -u > b"),
        ("make 2>&1 | tee log", "make 2>&1|tee log"),
        ("find . -name '*.py' -type f", 'find . -name "*.py" -type f'),
        ("rm -- -x", "rm -- '-x'"),
        ("echo 'a | b; c'", 'echo "a | b; c"'),
        ("git log --oneline -n5", "git log -n5 --oneline"),
        ("echo it's broken", "echo  it's broken"),  # a quote that never ends, to the letter
    ],
)
def test_the_same(answer: str, wanted: str) -> None:
    assert same_command(answer, wanted) and same_command(wanted, answer)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("", ""),
        ("", "ls"),
        ("ls -l", "ls"),
        ("cp a b", "cp b a"),
        ("ls --all", "ls -a"),
        ("grep --max-count=1 x", "grep --max-count 1 x"),
        ("sudo reboot", "reboot"),
        ("a | b", "a && b"),
        ("a | b", "b | a"),
        ("sort a > b", "sort b > a"),
        ("sort a >> b", "sort a > b"),
        ("find . -name f -type x", "find . -type f -name x"),
        ("head -10 a", "head -100 a"),
        ("tail -n10 a", "tail -n100 a"),
        ("kill -9 4", "kill -99 4"),
        ("cut -d1 -f2 a", "cut -d2 -f1 a"),
        ("find . -delete -name x", "find . -name x -delete"),
        ("rm -- -r x", "rm -r x"),
        ("echo 'x y'", "echo x y"),
        ("echo it's", "echo its"),
        ("cat -", "cat"),
    ],
)
def test_not_the_same(answer: str, wanted: str) -> None:
    assert not same_command(answer, wanted) and not same_command(wanted, answer)
