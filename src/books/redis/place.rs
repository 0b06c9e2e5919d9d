//! Where the books are, as `books.url` says: one server, a Cluster, or whatever server Sentinels
//! name. All servers of one place are asked with the same user, password, protocol and TLS.

use std::fmt;
use std::path::Path;

use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisError,
    TlsCertificates,
};

/// Where Sentinels listen that are named without a port.
const SENTINEL_PORT: u16 = 26379;

/// A server's host and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl Address {
    /// As redirections have it: `host:port`, where a host of colons has no brackets. Without a host
    /// it is the one that was asked.
    pub(super) fn read(text: &str, asked: &Self) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = if host.is_empty() { &asked.host } else { host };
        Some(Self { host: host.to_owned(), port: port.parse().ok()? })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Which servers there are.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// This one.
    Server(Address),
    /// Those of a Cluster, which is found through these.
    Cluster(Vec<Address>),
    /// The one that Sentinels name.
    Sentinel { master: String, sentinels: Vec<Address> },
}

/// Where the books are.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) kind: Kind,
    /// How servers are asked, and how Sentinels are; the addresses in them are of no meaning.
    server: ConnectionInfo,
    sentinel: ConnectionInfo,
    tls: Option<TlsCertificates>,
}

impl Place {
    /// Whether one server has everything.
    pub(super) fn is_one_server(&self) -> bool {
        !matches!(self.kind, Kind::Cluster(_))
    }

    /// Reads `books.url`: one URL, or several with spaces between them.
    ///
    /// # Errors
    /// What is wrong with it, without what may be secret.
    pub(super) fn read(urls: &str) -> Result<Self, String> {
        let parts = urls.split_ascii_whitespace().map(Parts::read);
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        let first = parts.first().ok_or("expected a URL like redis://127.0.0.1:6379")?;
        if parts.iter().any(|other| !first.asks_like(other)) {
            return Err(
                "several URLs are a Cluster: expected the same scheme, user, password, path \
                        and parameters in all of them"
                    .into(),
            );
        }
        let server = first.server()?;
        let kind = match (first.of_sentinels, parts.len()) {
            (true, 1) => Kind::Sentinel {
                master: first.master()?.to_owned(),
                sentinels: first.addresses(SENTINEL_PORT)?,
            },
            (true, _) => return Err("expected all Sentinels in one URL, with commas".into()),
            (false, 1) => Kind::Server(first.address()?),
            (false, _) if server.redis_settings().db() != 0 => {
                return Err("a Cluster has the database 0 only".into());
            }
            (false, _) => {
                Kind::Cluster(parts.iter().map(Parts::address).collect::<Result<_, _>>()?)
            }
        };
        Ok(Self { kind, sentinel: first.sentinel()?, server, tls: first.certificates()? })
    }

    /// What may be wrong with a server that ends a connection as soon as it is used.
    pub(super) fn doubt(&self) -> Option<&'static str> {
        let shows = self.tls.as_ref().is_some_and(|files| files.client_tls.is_some());
        match self.server.addr() {
            ConnectionAddr::TcpTls { .. } if shows => None,
            ConnectionAddr::TcpTls { .. } => Some(
                "if it asks for a certificate: name its file and that of its key with ?sslcert= \
                 and &sslkey= in books.url",
            ),
            _ => Some("if it speaks TLS there: rediss:// in books.url"),
        }
    }

    /// A client for a server of this place.
    pub(super) fn server(&self, address: &Address) -> Result<Client, RedisError> {
        self.client(&self.server, address)
    }

    /// A client for a Sentinel of this place.
    pub(super) fn sentinel(&self, address: &Address) -> Result<Client, RedisError> {
        self.client(&self.sentinel, address)
    }

    fn client(&self, how: &ConnectionInfo, address: &Address) -> Result<Client, RedisError> {
        let Address { host, port } = address.clone();
        let to = match how.addr() {
            ConnectionAddr::TcpTls { .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        let how = how.clone().set_addr(to);
        match &self.tls {
            Some(certificates) => Client::build_with_tls(how, certificates.clone()),
            None => Client::open(how),
        }
    }
}

/// The parts of a URL.
#[derive(Debug, Default)]
struct Parts<'a> {
    has_tls: bool,
    of_sentinels: bool,
    /// User and password, as they stand.
    user: &'a str,
    hosts: &'a str,
    path: &'a str,
    protocol: Option<&'a str>,
    /// Files: who signs the servers' certificates, and what we show them.
    roots: Option<&'a str>,
    certificate: Option<&'a str>,
    key: Option<&'a str>,
    /// User and password of Sentinels.
    sentinel_user: &'a str,
    sentinel_password: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn read(url: &'a str) -> Result<Self, String> {
        let scheme = url.split_once("://").filter(|_| !url.contains('#'));
        let (scheme, rest) = scheme.ok_or("expected a URL like redis://127.0.0.1:6379")?;
        let (has_tls, of_sentinels) = match scheme {
            "redis" => (false, false),
            "rediss" => (true, false),
            "redis+sentinel" => (false, true),
            "rediss+sentinel" => (true, true),
            _ => return Err("expected redis:// or rediss://, or one with +sentinel".into()),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if path.contains('@') {
            return Err("expected / in the password as %2F".into());
        }
        let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let mut parts = Self { has_tls, of_sentinels, user, hosts, path, ..Self::default() };
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            parts.parameter(parameter)?;
        }
        Ok(parts)
    }

    fn parameter(&mut self, parameter: &'a str) -> Result<(), String> {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match name {
            "protocol" => self.protocol = Some(value),
            "sslrootcert" if self.has_tls => self.roots = Some(value),
            "sslcert" if self.has_tls => self.certificate = Some(value),
            "sslkey" if self.has_tls => self.key = Some(value),
            "sentinel_user" if self.of_sentinels => self.sentinel_user = value,
            "sentinel_password" if self.of_sentinels => self.sentinel_password = Some(value),
            _ => {
                return Err("expected no other parameters than protocol, with rediss:// also \
                            sslrootcert, sslcert and sslkey, and for Sentinels sentinel_user and \
                            sentinel_password"
                    .into());
            }
        }
        Ok(())
    }

    /// Whether another server is asked like this one.
    fn asks_like(&self, other: &Self) -> bool {
        (self.has_tls, self.of_sentinels, self.user, self.path, self.protocol)
            == (other.has_tls, other.of_sentinels, other.user, other.path, other.protocol)
            && (self.roots, self.certificate, self.key)
                == (other.roots, other.certificate, other.key)
    }

    /// What follows the master's name, or the host: a database.
    fn database(&self) -> &str {
        match self.of_sentinels {
            true => self.path.split_once('/').map_or("", |(_, database)| database),
            false => self.path,
        }
    }

    fn master(&self) -> Result<&str, String> {
        let master = self.path.split('/').next().filter(|master| !master.is_empty());
        master.ok_or_else(|| {
            "expected the master's name behind the Sentinels: \
             redis+sentinel://host:26379,host:26379/master"
                .into()
        })
    }

    fn scheme(&self) -> &'static str {
        if self.has_tls { "rediss" } else { "redis" }
    }

    fn server(&self) -> Result<ConnectionInfo, String> {
        let host = self.hosts.split(',').next().unwrap_or_default();
        let (scheme, user, database) = (self.scheme(), self.user, self.database());
        let protocol = self.protocol.map(|protocol| format!("?protocol={protocol}"));
        let protocol = protocol.unwrap_or_default();
        info(&format!("{scheme}://{}{host}/{database}{protocol}", at(user)))
    }

    fn sentinel(&self) -> Result<ConnectionInfo, String> {
        let host = self.hosts.split(',').next().unwrap_or_default();
        let password = self.sentinel_password.map(|password| format!(":{password}"));
        let user = format!("{}{}", self.sentinel_user, password.unwrap_or_default());
        info(&format!("{}://{}{host}", self.scheme(), at(&user)))
    }

    fn address(&self) -> Result<Address, String> {
        match self.hosts.contains(',') {
            false => address(self.scheme(), self.hosts, 6379),
            true => Err("expected one host in a URL; several URLs are a Cluster".into()),
        }
    }

    fn addresses(&self, port: u16) -> Result<Vec<Address>, String> {
        self.hosts.split(',').map(|host| address(self.scheme(), host, port)).collect()
    }

    fn certificates(&self) -> Result<Option<TlsCertificates>, String> {
        let client_tls = match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => Some(ClientTlsConfig {
                client_cert: file("sslcert", certificate)?,
                client_key: file("sslkey", key)?,
            }),
            (None, None) => None,
            _ => return Err("expected sslcert and sslkey together".into()),
        };
        let root_cert = self.roots.map(|roots| file("sslrootcert", roots)).transpose()?;
        let is_asked = client_tls.is_some() || root_cert.is_some();
        Ok(is_asked.then_some(TlsCertificates { client_tls, root_cert }))
    }
}

fn at(user: &str) -> String {
    if user.is_empty() { String::new() } else { format!("{user}@") }
}

/// The crate's reader of URLs. What it says of one does not quote user or password.
fn info(url: &str) -> Result<ConnectionInfo, String> {
    let info = url.into_connection_info().map_err(|error| error.to_string())?;
    // Who is connected is known by the address, and one thing less has to be allowed.
    let settings = info.redis_settings().clone().set_skip_set_lib_name();
    Ok(info.set_redis_settings(settings))
}

fn address(scheme: &str, host: &str, port: u16) -> Result<Address, String> {
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
    let with_port = if has_port { host.to_owned() } else { format!("{host}:{port}") };
    match info(&format!("{scheme}://{with_port}"))?.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            Ok(Address { host: host.clone(), port: *port })
        }
        _ => Err("expected a host".into()),
    }
}

fn file(parameter: &str, path: &str) -> Result<Vec<u8>, String> {
    std::fs::read(Path::new(path)).map_err(|error| format!("{parameter} {path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANARY: &str = "canary-91c7";

    fn address(host: &str, port: u16) -> Address {
        Address { host: host.into(), port }
    }

    #[test]
    fn urls_are_read_as_a_server_a_cluster_or_sentinels() {
        let place = Place::read(&format!("redis://u:{CANARY}@db.internal:7000/3")).unwrap();
        assert!(matches!(place.kind, Kind::Server(at) if at == address("db.internal", 7000)));
        let settings = place.server.redis_settings();
        assert_eq!((settings.username(), settings.db()), (Some("u"), 3));
        assert_eq!(settings.password(), Some(CANARY));

        let place = Place::read("rediss://[::1] rediss://b:7001").unwrap();
        let Kind::Cluster(seeds) = &place.kind else { panic!("{place:?}") };
        assert_eq!(seeds[..], [address("::1", 6379), address("b", 7001)]);
        assert_eq!(seeds[0].to_string(), "[::1]:6379");
        assert!(matches!(place.server.addr(), ConnectionAddr::TcpTls { .. }));

        let url = "redis+sentinel://u:p@a,b:7002/books/5?sentinel_password=q&protocol=resp3";
        let place = Place::read(url).unwrap();
        let Kind::Sentinel { master, sentinels } = &place.kind else { panic!("{place:?}") };
        assert_eq!(master, "books");
        assert_eq!(sentinels[..], [address("a", 26379), address("b", 7002)]);
        let (server, sentinel) = (place.server.redis_settings(), place.sentinel.redis_settings());
        assert_eq!((server.username(), server.password(), server.db()), (Some("u"), Some("p"), 5));
        assert_eq!(server.protocol(), redis::ProtocolVersion::RESP3);
        assert_eq!((sentinel.username(), sentinel.password()), (None, Some("q")));
    }

    #[test]
    fn f81_what_is_wrong_with_a_url_is_told_without_its_secrets() {
        for (urls, told) in [
            (String::new(), "expected a URL"),
            (format!("http://u:{CANARY}@a"), "expected redis://"),
            (format!("redis://u:{CANARY}@a#insecure"), "expected a URL"),
            (format!("redis://u:{CANARY}@a:port"), "did not parse"),
            (format!("redis://u:{CANARY}@a/x"), "Invalid database number"),
            (format!("redis://u:{CANARY}@a,b"), "one host"),
            (format!("redis://:{CANARY}/x@a"), "%2F"),
            (format!("redis://u:{CANARY}@a?password={CANARY}"), "no other parameters"),
            (format!("redis://u:{CANARY}@a?sslrootcert=x"), "with rediss://"),
            (format!("rediss://u:{CANARY}@a?sslrootcert=/nowhere"), "sslrootcert /nowhere: "),
            (format!("rediss://u:{CANARY}@a?sslcert=x"), "sslcert and sslkey together"),
            (format!("redis://u:{CANARY}@a redis://b"), "the same scheme, user"),
            (format!("redis://u:{CANARY}@a/1 redis://u:{CANARY}@b/1"), "database 0"),
            (format!("redis+sentinel://u:{CANARY}@a,b"), "the master's name"),
            (format!("redis+sentinel://{CANARY}@a/m redis+sentinel://{CANARY}@b/m"), "in one URL"),
        ] {
            let error = Place::read(&urls).unwrap_err();
            assert!(error.contains(told), "{urls}: {error}");
            assert!(!error.contains(CANARY), "{error}");
        }
        let place = Place::read(&format!("redis://u:{CANARY}@a")).unwrap();
        assert!(!format!("{place:?}").contains(CANARY));
    }
}
