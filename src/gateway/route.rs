//! Routes: which request goes where and what of it is metered, compiled once from the
//! configuration.
//!
//! A path is matched as it was received. What a backend could read as another path than the one
//! that was priced is refused before anything else looks at it (f69).

use std::sync::Arc;

use http::Method;
use http::header::HeaderValue;

use super::Refused;
use super::inject::Inject;
use super::jobs;
use super::problem::Manner;
use super::quote::{Meter, Pricing, unescape};
use super::usage::Rules;
use crate::books::InDoubt;
use crate::config::{self, Hold, Idempotency, OnDisconnect, Progress, Table};
use crate::core::ids::Id;
use crate::core::refusal::{Code, Refusal};

/// A route.
#[derive(Debug)]
pub struct Route {
    /// Its path pattern: its name in records and metrics.
    pub name: Box<str>,
    /// Its place in the configuration, for metrics.
    pub index: usize,
    /// Which upstream it goes to.
    pub upstream: usize,
    /// What is metered; `None` for a free route.
    pub metered: Option<Metered>,
    /// How its refusals look.
    pub manner: Manner,
}

/// What is metered on a route, and how it is settled.
#[derive(Debug)]
pub struct Metered {
    /// The feature.
    pub feature: Id,
    /// Where quantities, attributes and usage are read.
    pub pricing: Pricing,
    /// The largest body that is held to be priced.
    pub max_body: u64,
    /// What is set in the body that is forwarded.
    pub inject: Option<Inject>,
    /// Which statuses are charged.
    charge_on: Vec<(u16, u16)>,
    /// What happens when the client leaves (D33).
    pub on_disconnect: OnDisconnect,
    /// What happens when the backend does not answer in time (D32).
    pub on_timeout: InDoubt,
    /// What happens when the gateway dies in between (D36).
    pub in_doubt: InDoubt,
    /// What becomes of keys (D35).
    pub idempotency: Idempotency,
    /// Nothing is refused for lack of credit (D28).
    pub observed: bool,
    /// Streams are held a slice at a time (D29).
    pub sliced: bool,
    /// The last event of a stream is the receipt.
    pub sse_receipt: bool,
    /// How the outcome of its jobs is found out (D34).
    pub job: Option<Box<jobs::Rules>>,
}

impl Metered {
    /// Whether the request's body must be held, so long as it is, where that is known.
    pub fn holds_body(&self, length: Option<u64>) -> bool {
        self.inject.is_some() || self.pricing.holds_body(length)
    }

    /// Whether the gateway may set events among those of a stream.
    pub fn appends(&self) -> bool {
        self.sliced || self.sse_receipt
    }

    /// Whether a status is charged (D32).
    pub fn charges(&self, status: u16) -> bool {
        self.charge_on.iter().any(|(from, to)| (*from..=*to).contains(&status))
    }
}

/// Why routes cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("route {path}: {problem}")]
pub struct RouteError {
    path: String,
    problem: String,
}

/// The routes of a gateway.
#[derive(Debug)]
pub struct Routes {
    table: Table<Arc<Route>>,
    /// By their places in the configuration.
    names: Vec<Box<str>>,
    /// By their places: what they meter.
    features: Vec<Option<Box<str>>>,
    /// By their places: to which upstream they submit jobs.
    submit: Vec<Option<usize>>,
    /// Upstreams that make jobs, and what the paths of those begin with.
    jobs: Vec<(usize, Box<str>)>,
    /// True where some route has refusals of its own kind.
    manners: bool,
}

/// A request's route, and what its path says.
pub struct Matched<'p> {
    /// The route.
    pub route: Arc<Route>,
    /// Path parameters, as they were received.
    pub params: matchit::Params<'p, 'p>,
}

impl Routes {
    /// Compiles the configuration's routes.
    ///
    /// # Errors
    /// The first route that makes no sense, or uses what is not built yet.
    pub fn new(
        routes: &[config::Route],
        upstreams: &[config::Upstream],
    ) -> Result<Self, RouteError> {
        let mut compiled = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            let fail = |problem: String| RouteError { path: route.path.clone(), problem };
            let method = match &route.method {
                None => None,
                Some(method) => Some(
                    Method::from_bytes(method.as_bytes())
                        .map_err(|_| fail(format!("{method:?} is not a method")))?,
                ),
            };
            let at = upstreams.iter().position(|upstream| upstream.name == route.upstream);
            let upstream =
                at.ok_or_else(|| fail(format!("there is no upstream {}", route.upstream)))?;
            let metered = if route.free { None } else { Some(metered(route).map_err(fail)?) };
            let name = route.path.as_str().into();
            let exhausted = match route.exhausted_status {
                None | Some(402 | 403 | 429) => route.exhausted_status,
                Some(_) => return Err(fail("`exhausted_status` is 402, 403 or 429".to_owned())),
            };
            let manner = Manner { exhausted, compat: route.compat };
            let entry = Arc::new(Route { name, index, upstream, metered, manner });
            compiled.push((method, &*route.path, entry));
        }
        let names = compiled.iter().map(|(_, _, route)| route.name.clone()).collect();
        let feature = |route: &config::Route| Some(route.feature.as_ref()?.as_str().into());
        let features = routes.iter().map(feature).collect();
        let submit = |(_, _, route): &(_, _, Arc<Route>)| {
            let submits = route.metered.as_ref().is_some_and(|metered| metered.job.is_some());
            submits.then_some(route.upstream)
        };
        let submit = compiled.iter().map(submit).collect();
        let job = |(_, _, route): &(_, _, Arc<Route>)| {
            Some((route.upstream, route.metered.as_ref()?.job.as_ref()?.above()?))
        };
        let jobs = compiled.iter().filter_map(job).collect();
        let manners = compiled.iter().any(|(_, _, route)| route.manner != Manner::default());
        let (table, errors) = Table::new(&compiled);
        match errors.into_iter().next() {
            None => Ok(Self { table, names, features, submit, jobs, manners }),
            Some((index, error)) => {
                Err(RouteError { path: routes[index].path.clone(), problem: error.to_string() })
            }
        }
    }

    /// True where the route of a request decides how its refusal looks.
    pub fn have_manners(&self) -> bool {
        self.manners
    }

    /// A route's name, by its place in the configuration.
    pub fn name(&self, index: usize) -> Option<&str> {
        self.names.get(index).map(|name| &**name)
    }

    /// The place of the route with this name that meters a feature.
    pub fn named(&self, name: &str, feature: &str) -> Option<usize> {
        let mut routes = self.names.iter().zip(&self.features);
        routes.position(|(own, of)| **own == *name && of.as_deref() == Some(feature))
    }

    /// The upstreams to which routes of this name submit jobs.
    pub fn submit<'r>(&'r self, name: &'r str) -> impl Iterator<Item = usize> + use<'r> {
        let routes = self.names.iter().zip(&self.submit);
        routes.filter(move |(own, _)| ***own == *name).filter_map(|(_, upstream)| *upstream)
    }

    /// Whether some route submits jobs to an upstream.
    pub fn has_jobs(&self, upstream: usize) -> bool {
        self.jobs.iter().any(|(own, _)| *own == upstream)
    }

    /// Whether a path, with nothing escaped, may be that of a job of an upstream.
    pub fn may_be_job(&self, upstream: usize, path: &str) -> bool {
        let is_below = |above: &str| path.len() > above.len() && path.starts_with(above);
        self.jobs.iter().any(|(own, above)| *own == upstream && is_below(above))
    }

    /// The place of a route that meters a feature: what is captured elsewhere is counted there too.
    pub fn of_feature(&self, feature: &str) -> Option<usize> {
        self.features.iter().position(|known| known.as_deref() == Some(feature))
    }

    /// The route of a request.
    ///
    /// # Errors
    /// `unknown_route`, or `method_not_allowed` with the methods that are.
    pub fn find<'p>(&'p self, method: &Method, path: &'p str) -> Result<Matched<'p>, Refused> {
        let allowed = match self.table.find(method, path) {
            Ok(found) => {
                return Ok(Matched { route: Arc::clone(found.value), params: found.params });
            }
            Err(allowed) => allowed,
        };
        if allowed.is_empty() {
            let detail = "no route of this gateway has this path";
            return Err(Refusal::new(Code::UnknownRoute, detail).into());
        }
        let allowed = allowed.join(", ");
        let detail = format!("this path takes {allowed}");
        let mut refused = Refused::from(Refusal::new(Code::MethodNotAllowed, detail));
        refused.allow = HeaderValue::from_str(&allowed).ok();
        Err(refused)
    }
}

fn metered(route: &config::Route) -> Result<Metered, String> {
    let feature = route.feature.clone().ok_or("it needs a `feature`, or `free = true`")?;
    let mut pricing = Pricing::default();
    let mut usage = Rules::new(route.pick.unwrap_or_default());
    if route.meter.is_empty() {
        let quantity = pricing.quantity(route.quantity.as_ref())?;
        pricing.meters.push(Meter { name: None, quantity });
        usage.add(route.usage.as_ref())?;
        counted(&mut usage, route.progress);
    } else if route.quantity.is_some() || route.usage.is_some() {
        return Err("`quantity` and `usage` belong into its meters".to_owned());
    }
    for meter in &route.meter {
        let quantity = pricing.quantity(meter.quantity.as_ref())?;
        pricing.meters.push(Meter { name: Some(meter.name.clone()), quantity });
        usage.add(meter.usage.as_ref())?;
        counted(&mut usage, meter.progress);
    }
    pricing.usage = Arc::new(usage);
    for (name, attribute) in &route.attributes {
        pricing.attribute(name.clone(), attribute)?;
    }
    let known = |name: &&str| config::parameters(&route.path).any(|known| known == *name);
    if let Some(missing) = pricing.paths().find(|name| !known(name)) {
        return Err(format!("its path has no parameter {{{missing}}}"));
    }
    let inject = Inject::new(&route.inject, route.inject_when.as_ref())?;
    if pricing.is_torn(inject.is_some()) {
        return Err("its body is read as JSON or as a form, not as both".to_owned());
    }
    let charge_on = route.charge_on.iter().map(|text| statuses(text)).collect::<Result<_, _>>()?;
    Ok(Metered {
        feature,
        pricing,
        max_body: route.max_body,
        inject,
        charge_on,
        on_disconnect: route.on_disconnect,
        on_timeout: route.on_timeout,
        in_doubt: route.in_doubt,
        idempotency: route.idempotency.unwrap_or_default(),
        observed: route.mode == Some(config::Mode::Observe),
        sliced: route.hold == Some(Hold::Slice),
        sse_receipt: route.sse_receipt,
        job: jobs::Rules::of(route)?.map(Box::new),
    })
}

fn counted(usage: &mut Rules, progress: Option<Progress>) {
    if progress == Some(Progress::Events) {
        usage.count_events();
    }
}

fn statuses(text: &str) -> Result<(u16, u16), String> {
    let fail = || format!("`charge_on` takes statuses like \"2xx\" or \"404\", got {text:?}");
    config::statuses(text).ok_or_else(fail)
}

/// Refuses a path that a backend could read as another one (f69): empty and dot segments,
/// backslashes, parameters after `;`, and escapes of anything that needs none or that would be
/// one of these when it is resolved.
///
/// # Errors
/// `bad_request`.
pub fn check_path(path: &str) -> Result<(), Refused> {
    let bytes = path.as_bytes();
    let refuse = |detail| Err(Refusal::new(Code::BadRequest, detail).into());
    if bytes.first() != Some(&b'/') {
        return refuse("the request's target must be a path");
    }
    // The usual path is letters, digits and single slashes; one look at each byte tells.
    let (mut at, mut foreign) = (0, false);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'/' => match bytes.get(at + 1..) {
                Some([b'/', ..]) => return refuse("the path has an empty segment"),
                Some([b'.'] | [b'.', b'/', ..] | [b'.', b'.'] | [b'.', b'.', b'/', ..]) => {
                    return refuse("the path has a dot segment");
                }
                _ => {}
            },
            b'\\' | b';' => return refuse("the path has a backslash or a semicolon"),
            b'%' => {
                let hex = |at: usize| {
                    bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16)).map(|d| d as u8)
                };
                match hex(at + 1).zip(hex(at + 2)).map(|(high, low)| high * 16 + low) {
                    None => return refuse("the path has a broken escape"),
                    Some(0..=0x1f | 0x7f | b'/' | b'\\' | b';' | b'%' | b'?' | b'#') => {
                        return refuse("the path escapes a delimiter or a control character");
                    }
                    Some(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                        return refuse("the path escapes a character that needs no escape");
                    }
                    Some(byte) => {
                        foreign |= !byte.is_ascii();
                        at += 2;
                    }
                }
            }
            0x21..=0x7e => {}
            _ => return refuse("the path has a control or non-ASCII character"),
        }
        at += 1;
    }
    // Overlong forms of `.` and `/` are none, and some decoders take them (RFC 3629, section 10).
    if foreign && unescape(path, false).is_err() {
        return refuse("the path escapes what is no UTF-8");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> config::Config {
        let upstream = "[[upstream]]\nname = \"media\"\nurls = [\"http://127.0.0.1:1\"]\n";
        toml::from_str(&format!("{upstream}{text}")).unwrap()
    }

    fn routes(text: &str) -> Result<Routes, String> {
        let config = config(text);
        Routes::new(&config.route, &config.upstream).map_err(|error| error.to_string())
    }

    const FREE: &str = "upstream = \"media\"\nfree = true\n";

    #[test]
    fn the_most_specific_path_of_the_method_wins() {
        let routes = routes(&format!(
            "[[route]]\npath = \"/{{*rest}}\"\nmethod = \"POST\"\n{FREE}\
             [[route]]\npath = \"/v1/models\"\n{FREE}\
             [[route]]\npath = \"/v1/images\"\nmethod = \"GET\"\n{FREE}"
        ))
        .unwrap();
        let name = |method, path| {
            routes.find(&method, path).map(|found| found.route.name.to_string()).map_err(|r| {
                (r.refusal.code, r.allow.map(|allow| allow.to_str().unwrap().to_owned()))
            })
        };
        assert_eq!(name(Method::POST, "/v1/models"), Ok("/v1/models".into()));
        assert_eq!(name(Method::POST, "/v1/other"), Ok("/{*rest}".into()));
        assert_eq!(name(Method::PUT, "/v1/models"), Ok("/v1/models".into()));
        let allow = Some("GET, POST".to_owned());
        assert_eq!(name(Method::PUT, "/v1/images"), Err((Code::MethodNotAllowed, allow)));
        assert_eq!(name(Method::GET, "/nowhere").unwrap_err().0, Code::MethodNotAllowed);
    }

    #[test]
    fn f69_paths_that_could_be_read_as_others_are_refused() {
        for path in [
            "",
            "*",
            "x",
            "//",
            "/a//b",
            "/a/../b",
            "/a/.",
            "/./a",
            "/a/..",
            "/%2e%2e/a",
            "/a%2Fb",
            "/a%5cb",
            "/a\\b",
            "/a;x=1/b",
            "/a%3b",
            "/%61",
            "/a%",
            "/a%2",
            "/a%zz",
            "/a%00",
            "/a%252e",
            "/%c0%ae",
            "/%e0%80%af",
            "/%ff",
            "/é",
            "/a\u{7f}",
        ] {
            let code = check_path(path).map_err(|refused| refused.refusal.code);
            assert_eq!(code, Err(Code::BadRequest), "{path:?}");
        }
        for path in ["/", "/v1/images", "/a.b/..c/c..", "/a%20b", "/%C3%A9", "/a:b@c,d=e", "/a/"] {
            assert!(check_path(path).is_ok(), "{path:?}");
        }
    }

    #[test]
    fn d32_charge_on_names_statuses_and_classes() {
        let routes = routes(
            "[[route]]\npath = \"/x\"\nupstream = \"media\"\nfeature = \"f\"\n\
             charge_on = [\"2xx\", \"404\"]\n",
        )
        .unwrap();
        let found = routes.find(&Method::GET, "/x").map_err(|_| ()).unwrap();
        let metered = found.route.metered.as_ref().unwrap();
        for (status, charges) in [(200, true), (299, true), (300, false), (404, true), (403, false)]
        {
            assert_eq!(metered.charges(status), charges, "{status}");
        }
    }

    #[test]
    fn what_makes_no_sense_or_is_not_built_is_an_error_at_load() {
        let base = "[[route]]\npath = \"/x\"\nupstream = \"media\"\n";
        for (text, part) in [
            ("", "feature"),
            ("feature = \"f\"\ncharge_on = [\"6xx\"]", "charge_on"),
            ("feature = \"f\"\nquantity = { path = \"n\" }", "{n}"),
            ("feature = \"f\"\nquantity = { json = \"/n\", header = \"n\" }", "exactly one"),
            ("feature = \"f\"\nquantity = { json = \"n\" }", "pointer"),
            ("feature = \"f\"\nusage = { sse_json = \"/n\", header = \"n\" }", "exactly one"),
            ("feature = \"f\"\nusage = { ndjson_json = \"n\" }", "pointer"),
            ("free = true\nmethod = \"GET POST\"", "method"),
        ] {
            let error = routes(&format!("{base}{text}\n")).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        let twice = format!("{base}free = true\n{base}free = true\n");
        assert!(routes(&twice).is_err());
        let nowhere = "[[route]]\npath = \"/x\"\nupstream = \"other\"\nfree = true\n";
        assert!(routes(nowhere).unwrap_err().contains("no upstream other"));
    }
}
