"""The org of a measurement: users by the hundred thousand, three licences each, and others who have
nothing left and no access to the pool."""

from pathlib import Path

HEAD = """\
[org]
id = "@ORG@"
contract = "etla"
products = ["firefly-services", "cce-4"]

[[term]]
id = "all"
start = "2020-01-01"
end = "2100-01-01"
pool = "1000000"

[[plan]]
id = "cc-pro"
credits = "4000"

[[plan]]
id = "addon-2000"
credits = "2000"

# The few users whom Zipf draws most use up the first two and go on here: nobody is refused.
[[plan]]
id = "bottomless"
credits = "1000000000"

# Never enough for one image, and with nothing else: these users are always refused.
[[plan]]
id = "crumb"
credits = "0.25"

[[group]]
id = "everyone"

[[profile]]
id = "ffs"
product = "firefly-services"
shared_credits = true
groups = ["everyone"]

[[profile]]
id = "cce"
product = "cce-4"
groups = ["everyone"]

[[rate_card]]
version = "load-1"
operations_per_credit = "0.02"

[[rate_card.rate]]
feature = "text-to-image"
when = { resolution = "1k" }
unit = "image"
credits = "1"

[[rate_card.rate]]
feature = "text-to-image"
when = { resolution = "2k" }
unit = "image"
credits = "2"

[[key]]
id = "driver"
kind = "service"
acts_for = "*"
"""


def head(name: str = "load") -> str:
    return HEAD.replace("@ORG@", name)


def write(to: Path, users: int, secret: str, org: int = 0, orgs: int = 1, broke: int = 0) -> Path:
    """One of `orgs` among which the users are shared out, and as many as said who have nothing."""
    several = orgs > 1
    with to.open("w") as out:
        out.write(head(f"load-{org:05}") if several else head())
        out.write(f'secret = "{secret}{org:05}"\n' if several else f'secret = "{secret}"\n')
        for i in range(org, users, orgs):
            user = f"u{i:07}"
            plans = ("cc-pro", "addon-2000", "bottomless")
            licences = ", ".join(
                f'{{ id = "{user}-{n}", plan = "{plan}", priority = {n} }}'
                for n, plan in enumerate(plans, 1)
            )
            out.write(f'\n[[user]]\nid = "{user}"\ngroups = ["everyone"]\nlicences = [{licences}]\n')
        for i in range(broke):
            user = f"x{i:07}"
            licences = ", ".join(
                f'{{ id = "{user}-{n}", plan = "crumb", priority = {n} }}' for n in (1, 2, 3)
            )
            out.write(f'\n[[user]]\nid = "{user}"\nlicences = [{licences}]\n')
    return to
