"""Which texts are left out, by a list made by hand: what each rule finds, and what only looks like it."""

import pytest

from penstock.errors import ConfigError
from penstock.tune.flywheel.pii import matching, rules

FOUND = {
    "email": [
        "write to jane.doe+lists@mail.example.org please",
        "Jane_Doe@example.co.uk",
        "git clone x && mail jürgen@bücher.example",
    ],
    "phone": [
        "call +49 30 901820",
        "call +1 (555) 010-9999 now",
        "my number is (555) 123-4567",
        "555-123-4567",
        "030/901820-12",
        "0049 170 1234567",
        "ring 0171 2345678",
    ],
    "card": [
        "4111 1111 1111 1111",
        "card 5500-0000-0000-0004, exp 12/27",
        "378282246310005",
        "number:6011111111111117.",
    ],
    "iban": [
        "DE89 3704 0044 0532 0130 00",
        "send it to GB82WEST12345698765432",
        "fr1420041010050500013m02606",
        "NL91 ABNA 0417 1643 00 THEN pay",
    ],
    "ip": ["ssh root@8.8.8.8", "dig @8.8.8.8:53", "ping 93.184.216.34.", "from 2001:4860:4860::8888 port 22"],
    "secret": [
        "export OPENAI_API_KEY=sk-proj-abcdefghij0123456789",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "AKIAIOSFODNN7EXAMPLE",
        "-----BEGIN RSA PRIVATE KEY-----",
        "Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcDEF123456",
        "my password is hunter2hunter2",
        'api_key: "0a1b2c3d4e5f"',
        "DB_PASSWORD=abc12345xyz",
        "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI7K7MDENGbPxRfiCY",
        "client_secret: 0a1b2c3d4e5f",
        "mysql --password hunter2abc",
        "Authorization: Bearer abcdef0123456789abcdef",
        "psql postgres://bob:pw@db/app",
    ],
}
NOT_FOUND = [
    # email
    "ssh user@host",
    "docker pull name@sha256:abc",
    "npm install @types/node",
    "what is the @ in user@?",
    # phone
    "on 2026-11-26 at 10:15:30",
    "version 1.22.333",
    "chmod 0644 file",
    "kill 123456789",
    "sleep 1000000000",
    "10000 + 20000 = 30000",
    "-1234567890",
    # card
    "4111 1111 1111 1112",
    "1700000000000",
    "0000 0000 0000 0000",
    "id 4111111111111111222233334444",
    # iban
    "GB82WEST12345698765433",
    "AB12 word with four letters each",
    "SHA1 ABCD",
    # ip
    "curl 127.0.0.1:8000",
    "192.168.0.17",
    "999.1.2.3",
    "10.0.0.0/8",
    "bind to ::1",
    "std::vector<a::b::c>",
    "12:30:45",
    "1.2.3",
    # secret
    "what is a password: explained",
    "password=yourpassword",
    "git checkout 3f786850e387550fdab836ed7e6dc881de23001b",
    "the token is expired",
    "sk-learn",
    "the bearer of this letter, number 12",
    "https://example.org:8080/a@b",
    "a password 12 characters long",
    "set-secret --name thing",
    "123e4567-e89b-12d3-a456-426614174000",
]


@pytest.mark.parametrize(("rule", "text"), [(rule, text) for rule, texts in FOUND.items() for text in texts])
def test_what_a_rule_finds(rule, text):
    assert rule in matching(rules(), text)


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_only_looks_like_it(text):
    assert matching(rules(), text) == []


def test_rules_are_added_and_taken_off():
    chosen = rules([r"customer=\bC-\d{6}\b", "internal=(?i)project=x"], ["ip", "phone"])
    assert matching(chosen, "C-123456 at 8.8.8.8, +49 30 901820") == ["customer"]
    assert matching(chosen, "Project=X for a@b.example") == ["email", "internal"]
    assert matching(chosen, "C-1234567") == []


@pytest.mark.parametrize(
    ("added", "kept", "says"),
    [
        ([], ["names"], "keep_pii is 'names', and no rule is called so; there are email, phone, card, iban, ip, secret"),
        (["customer"], [], "write NAME=REGEX"),
        (["customer=("], [], "pii_pattern customer is no regular expression"),
        (["email=x"], [], "there is a rule 'email' already"),
        (["a=x", "a=y"], [], "there is a rule 'a' already"),
    ],
)  # fmt: skip
def test_rules_that_are_none_are_refused(added, kept, says):
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        rules(added, kept)
