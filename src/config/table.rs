//! Which route takes a request. One table serves `check` and the gateway, so that what is valid
//! is what is served.

use http::Method;

/// Routes by method and path.
#[derive(Debug)]
pub struct Table<T> {
    /// For methods that some route names: its routes and those of any method.
    by_method: Vec<(Method, matchit::Router<T>)>,
    /// For all other methods.
    any: matchit::Router<T>,
}

impl<T: Clone> Table<T> {
    /// A table of routes, each with its method (`None` for any), its path in matchit's syntax and
    /// what is found by them; and those that cannot be in it, by their place, with the reason: a
    /// path that is none, or that could take the same request as another one's.
    pub fn new(routes: &[(Option<Method>, &str, T)]) -> (Self, Vec<(usize, matchit::InsertError)>) {
        let mut methods: Vec<&Method> = routes.iter().filter_map(|(m, ..)| m.as_ref()).collect();
        methods.sort_unstable_by_key(|method| method.as_str());
        methods.dedup();
        let mut errors = Vec::new();
        let mut router = |of: Option<&Method>| {
            let all = || routes.iter().enumerate();
            let named = all().filter(|(_, (m, ..))| m.is_some() && m.as_ref() == of);
            let any = all().filter(|(_, (m, ..))| m.is_none());
            let mut router = matchit::Router::new();
            let mut taken: Vec<&str> = Vec::new();
            for (index, (method, path, found)) in named.chain(any) {
                // A route of this method goes before one of any method on the same path.
                if method.is_none() && of.is_some() && taken.contains(path) {
                    continue;
                }
                taken.push(path);
                if let Err(error) = router.insert(*path, found.clone())
                    && !errors.iter().any(|(known, _)| *known == index)
                {
                    errors.push((index, error));
                }
            }
            router
        };
        let by_method =
            methods.iter().map(|&method| (method.clone(), router(Some(method)))).collect();
        let any = router(None);
        (Self { by_method, any }, errors)
    }

    /// What is found for a request.
    ///
    /// # Errors
    /// The methods that the path does take; none for an unknown path.
    pub fn find<'t, 'p>(
        &'t self,
        method: &Method,
        path: &'p str,
    ) -> Result<matchit::Match<'t, 'p, &'t T>, Vec<&'t str>> {
        let own = self.by_method.iter().find(|(known, _)| known == method);
        let router = own.map_or(&self.any, |(_, router)| router);
        router.at(path).map_err(|_| {
            let takes = self.by_method.iter().filter(|(_, router)| router.at(path).is_ok());
            takes.map(|(method, _)| method.as_str()).collect()
        })
    }
}

/// The names of a pattern's parameters.
pub fn parameters(path: &str) -> impl Iterator<Item = &str> {
    let parts = path.split('{').skip(1).filter_map(|part| part.split_once('}'));
    parts.map(|(name, _)| name.trim_start_matches('*'))
}

/// `2xx`, or one status, as the first and last that are meant. Interim statuses (1xx) never settle
/// a request.
pub fn statuses(text: &str) -> Option<(u16, u16)> {
    match text.as_bytes() {
        [class @ b'2'..=b'5', b'x', b'x'] => {
            let first = u16::from(class - b'0') * 100;
            Some((first, first + 99))
        }
        [b'2'..=b'5', b'0'..=b'9', b'0'..=b'9'] => {
            let status = text.parse().ok()?;
            Some((status, status))
        }
        _ => None,
    }
}

/// True for a JSON pointer (RFC 6901, section 3).
pub fn is_pointer(text: &str) -> bool {
    let escaped = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    escaped && (text.is_empty() || text.starts_with('/'))
}
