"""DKIM verifiers that share nothing with ours, asked from the command line: Perl's Mail::DKIM, and mailauth from npm."""

import base64
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

NODE_MODULES = Path(__file__).parent / "node_modules"

_PERL = """
use strict; use warnings; use Mail::DKIM::Verifier; use Mail::DKIM::DNS; use Net::DNS::Resolver; use JSON::PP; use MIME::Base64;
Mail::DKIM::DNS::resolver(Net::DNS::Resolver->new(nameservers => ['127.0.0.1'], port => $ARGV[0], recurse => 1));
local $/; my @all;
for my $mail (@{ decode_json(<STDIN>) }) {
  my $verifier = Mail::DKIM::Verifier->new(); $verifier->PRINT(decode_base64($mail)); $verifier->CLOSE;
  push @all, [map { $_->algorithm . '=' . $_->result } $verifier->signatures];
}
print encode_json(\\@all);
"""

_NODE = """
const { dkimVerify } = require(MODULES + '/mailauth/lib/dkim/verify.js');
const { Resolver } = require('dns').promises;
const dns = new Resolver(); dns.setServers(['127.0.0.1:' + process.argv[1]]);
const chunks = []; process.stdin.on('data', c => chunks.push(c)).on('end', async () => {
  const all = [];
  for (const mail of JSON.parse(Buffer.concat(chunks))) {
    const found = await dkimVerify(Buffer.from(mail, 'base64'), { resolver: (n, t) => dns.resolve(n, t) });
    all.push(found.results.map(x => x.algo + '=' + x.status.result));
  }
  process.stdout.write(JSON.stringify(all));
});
"""


def mail_dkim(mails: Sequence[bytes], dns_port: int) -> list[list[str]]:
    """For each mail, `rsa-sha256=pass` and the like for each signature, the topmost first."""
    return _asked(["perl", "-e", _PERL, str(dns_port)], mails)


def mailauth(mails: Sequence[bytes], dns_port: int) -> list[list[str]]:
    """The same."""
    if not (NODE_MODULES / "mailauth").exists():
        strict = os.environ.get("CI") == "true" or os.environ.get("REMAILS_TEST_STRICT") == "1"
        (pytest.fail if strict else pytest.skip)("needs mailauth from npm, which tests/prepare installs")
    return _asked(["node", "-e", _NODE.replace("MODULES", json.dumps(str(NODE_MODULES))), str(dns_port)], mails)


def _asked(command: list[str], mails: Sequence[bytes]) -> list[list[str]]:
    given = json.dumps([base64.b64encode(mail).decode() for mail in mails]).encode()
    done = subprocess.run(command, input=given, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found: list[list[str]] = json.loads(done.stdout)
    return found
