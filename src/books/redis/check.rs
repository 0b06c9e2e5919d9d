//! What a server of Redis has to be like before the books are kept in it: looked at when a gateway
//! starts, at every master.

use super::link::Link;
use super::node::{CallError, Node};
use super::place::Kind;

/// The first version that has functions.
const VERSION: u64 = 7;

/// Sees that each master can keep the books, and has a replica where changes count only then.
///
/// # Errors
/// Which one cannot, and what to do about it.
pub(super) async fn servers(link: &Link, replica: bool) -> Result<(), String> {
    for master in link.everyone().await.map_err(|error| error.to_string())? {
        let told = info(&master, link.place().doubt()).await?;
        let server = &master.address;
        let in_cluster = matches!(link.place().kind, Kind::Cluster(_));
        fits(&told, in_cluster).map_err(|why| format!("{server}: {why}"))?;
        if replica {
            has_replica(&told).map_err(|why| format!("{server}: {why}"))?;
            may_wait(&master).await.map_err(|why| format!("{server}: {why}"))?;
        }
        if field(&told, "aof_enabled") == Some("0") {
            tracing::warn!(
                redis = %server,
                "Redis has `appendonly no`: when it dies, what was charged since its last snapshot \
                 is lost and can be spent again; set `appendonly yes`"
            );
        }
    }
    Ok(())
}

async fn info(master: &Node, doubt: Option<&str>) -> Result<String, String> {
    let told = master.ask(&redis::cmd("INFO")).await.map_err(|error| match (&error, doubt) {
        (CallError::NotExecuted(why), _) if why.contains("NoPerm") => {
            format!("{why}; what a user needs is in docs/scaling.md: +info is part of it")
        }
        // How a connection ends that is not wanted depends on who is first.
        (CallError::NotExecuted(why) | CallError::Unknown(why), Some(doubt))
            if ["broken pipe", "timed out", "reset", "closed", "end of file", "eof"]
                .iter()
                .any(|end| why.to_lowercase().contains(end)) =>
        {
            format!("{why}; {doubt}")
        }
        _ => error.to_string(),
    })?;
    redis::from_redis_value(told).map_err(|error| format!("{}: {error}", master.address))
}

/// Whether what `INFO` tells is what the books need.
fn fits(told: &str, in_cluster: bool) -> Result<(), String> {
    let version = field(told, "redis_version").unwrap_or("unknown");
    let major = version.split('.').next().and_then(|major| major.parse::<u64>().ok());
    if major.is_none_or(|major| major < VERSION) {
        return Err(format!(
            "its version is {version}, and the books need {VERSION}.0 or later: they are functions \
             of Redis"
        ));
    }
    if !in_cluster && field(told, "cluster_enabled") == Some("1") {
        return Err("it is a server of a Cluster: list several of its servers in books.url".into());
    }
    if field(told, "role") == Some("slave") {
        return Err("it is a replica: name its master in books.url, or the Sentinels".into());
    }
    match field(told, "maxmemory_policy") {
        Some("noeviction") => Ok(()),
        policy => {
            let policy = policy.unwrap_or("unknown");
            Err(format!(
                "its maxmemory-policy is {policy}, so it may delete balances when memory is short: \
                 set `maxmemory-policy noeviction`"
            ))
        }
    }
}

/// Whether a replica follows it.
fn has_replica(told: &str) -> Result<(), String> {
    let follows = |value: &str| value.split(',').any(|part| part == "state=online");
    let replicas = told.lines().filter(|line| line.starts_with("slave"));
    match replicas.filter_map(|line| line.trim_end().split_once(':')).any(|(_, is)| follows(is)) {
        true => Ok(()),
        false => Err("no replica follows it, and with books.durability = \"replica\" nothing is \
                      acknowledged that none has: start one (`replicaof`), or set `durability = \
                      \"process\"`"
            .into()),
    }
}

/// Whether the user may wait for replicas: no call is to find out.
async fn may_wait(master: &Node) -> Result<(), String> {
    match master.ask(redis::cmd("WAIT").arg(0).arg(0)).await {
        Ok(_) => Ok(()),
        Err(CallError::NotExecuted(why)) if why.contains("NoPerm") => {
            Err(format!("{why}; books.durability = \"replica\" needs +wait (docs/scaling.md)"))
        }
        Err(error) => Err(error.to_string()),
    }
}

fn field<'a>(told: &'a str, name: &str) -> Option<&'a str> {
    let lines = told.lines().filter_map(|line| line.trim_end().split_once(':'));
    lines.filter(|(found, _)| *found == name).map(|(_, value)| value).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f28_what_does_not_fit_is_told_with_what_to_do() {
        let info = |version: &str, policy: &str, cluster: u8, role: &str| {
            format!(
                "# Server\r\nredis_version:{version}\r\n# Memory\r\nmaxmemory_policy:{policy}\r\n\
                 role:{role}\r\ncluster_enabled:{cluster}\r\n"
            )
        };
        for (version, fine) in [
            ("6.2.14", false),
            ("7.0.15", true),
            ("10.1", true),
            ("x", false),
            ("255.255.255", true),
        ] {
            let told = fits(&info(version, "noeviction", 0, "master"), false);
            assert_eq!(told.is_ok(), fine, "{told:?}");
            let names = |why: &String| why.contains(version) && why.contains("7.0");
            assert!(told.err().is_none_or(|why| names(&why)));
        }
        assert!(fits(&info("8.0", "noeviction", 1, "master"), true).is_ok());
        for (told, why) in [
            (info("8.0", "allkeys-lru", 0, "master"), "`maxmemory-policy noeviction`"),
            (info("8.0", "noeviction", 1, "master"), "list several"),
            (info("8.0", "noeviction", 0, "slave"), "its master"),
            (String::new(), "unknown"),
        ] {
            assert!(fits(&told, false).unwrap_err().contains(why), "{told}");
        }
    }
}
