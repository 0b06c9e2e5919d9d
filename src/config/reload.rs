//! What of a configuration can change while the process runs.

use toml::Value;

use super::Config;

/// Takes one key over from the other configuration.
type Put = fn(&mut Config, &Config);

/// The keys that a reload puts in force (`*` is everything below), and how it does. All others need
/// a restart.
const LIVE: &[(&str, Put)] = &[
    ("gateway.drain_delay", |own, new| own.gateway.drain_delay = new.gateway.drain_delay),
    ("gateway.drain_timeout", |own, new| own.gateway.drain_timeout = new.gateway.drain_timeout),
    ("gateway.trusted_proxies", |own, new| {
        own.gateway.trusted_proxies.clone_from(&new.gateway.trusted_proxies);
    }),
    ("log.*", |own, new| own.log.clone_from(&new.log)),
    ("limits.*", |own, new| own.limits.clone_from(&new.limits)),
    ("upstream.*", |own, new| own.upstream.clone_from(&new.upstream)),
    ("route.*", |own, new| own.route.clone_from(&new.route)),
];

/// Takes over what can change live.
pub fn put_live(running: &mut Config, new: &Config) {
    for (_, put) in LIVE {
        put(running, new);
    }
}

/// What differs between two configurations, by key; elements of `[[upstream]]` and `[[route]]` are
/// not told apart, because one that is added moves the others.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Put in force by the reload.
    pub live: Vec<String>,
    /// What the process goes on without until it is restarted.
    pub restart: Vec<String>,
}

/// Compares the configuration in force with one that was just read. Secrets are not compared:
/// those that can change live are in files of their own.
pub fn changes(before: &Config, after: &Config) -> Changes {
    let mut changes = Changes::default();
    // What was read from TOML has a form in TOML.
    if let (Ok(before), Ok(after)) = (Value::try_from(before), Value::try_from(after)) {
        walk("", Some(&before), Some(&after), &mut changes);
    }
    changes
}

fn walk(key: &str, before: Option<&Value>, after: Option<&Value>, changes: &mut Changes) {
    let table = |value: Option<&Value>| value.and_then(Value::as_table).cloned();
    let absent = |value: Option<&Value>| value.is_none_or(Value::is_table);
    if key != "route" && key != "upstream" && absent(before) && absent(after) {
        let (before, after) = (table(before), table(after));
        let tables = [before.iter().flatten(), after.iter().flatten()];
        let mut names: Vec<&String> = tables.into_iter().flatten().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let inner = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            let value = |table: &Option<toml::Table>| table.as_ref()?.get(name).cloned();
            walk(&inner, value(&before).as_ref(), value(&after).as_ref(), changes);
        }
        return;
    }
    if before != after {
        let live = LIVE.iter().any(|(pattern, _)| match pattern.strip_suffix(".*") {
            Some(section) => key
                .strip_prefix(section)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.')),
            None => key == *pattern,
        });
        if live { &mut changes.live } else { &mut changes.restart }.push(key.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn f54_what_changes_live_and_what_needs_a_restart_is_told_by_key() {
        let before = config("[limits]\nmax_in_flight = 7\n[[upstream]]\nname = \"m\"\nurls = []");
        assert_eq!(changes(&before, &before), Changes::default());
        let after = config(
            "[gateway]\nlisten = \"127.0.0.1:1\"\ndrain_delay = \"1s\"\nworkers = 9
[log]\nlevel = \"debug\"
[limits]\nper_org = { rps = 5 }
[books]\nurl = \"redis://u:secret@127.0.0.1\"
[data]\ndir = \"elsewhere\"
[[route]]\npath = \"/a\"\nupstream = \"m\"\nfree = true",
        );
        let Changes { live, restart } = changes(&before, &after);
        let expected = [
            "gateway.drain_delay",
            "limits.max_in_flight",
            "limits.per_org.rps",
            "log.level",
            "route",
            "upstream",
        ];
        assert_eq!(live, expected);
        assert_eq!(restart, ["books.url", "data.dir", "gateway.listen", "gateway.workers"]);
        // What is told to be live is put in force, and nothing else.
        let mut running = before;
        put_live(&mut running, &after);
        let left = changes(&running, &after);
        assert_eq!((left.live, left.restart), (Vec::new(), restart));
    }
}
