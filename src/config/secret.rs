//! Secrets are read from the environment or from files, into types that cannot be printed. An
//! error names the variable or the file, never what it holds.

use std::path::{Path, PathBuf};

use http::{HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};

use super::{Books, Credential, OneOrMany, Report, Url};

/// The longest secret; a larger file is not one.
const MAX_LENGTH: u64 = 64 * 1024;
/// The shortest secret that is believed of whoever shows it: anybody may try.
const SHORTEST: usize = 24;

/// Why a secret could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The variable is not there.
    #[error("${0}: expected a secret, the variable is not set")]
    Unset(String),
    /// The variable holds nothing that can be a secret.
    #[error("${0}: expected a secret of visible characters")]
    Variable(String),
    /// The file cannot be read.
    #[error("{}: expected a file that holds a secret: {}", .0.display(), .1)]
    Unreadable(PathBuf, std::io::ErrorKind),
    /// The file holds nothing that can be a secret.
    #[error("{}: expected a secret of visible characters", .0.display())]
    File(PathBuf),
    /// Too short to be believed; the source.
    #[error("{0}: expected a secret of at least {SHORTEST} characters")]
    Short(String),
    /// The credential names no source, or its header is none; `validate` refuses that earlier.
    #[error("credential: expected exactly one of env, file, and a header's name")]
    Credential,
}

/// The secret in an environment variable. `look_up` is `|name| std::env::var_os(name)` outside
/// tests.
///
/// # Errors
/// See [`SecretError`].
pub fn from_variable(
    name: &str,
    look_up: impl Fn(&str) -> Option<std::ffi::OsString>,
) -> Result<SecretString, SecretError> {
    let value = look_up(name).ok_or_else(|| SecretError::Unset(name.to_owned()))?;
    let text = value.into_string().ok();
    text.and_then(accept).ok_or_else(|| SecretError::Variable(name.to_owned()))
}

/// The secret in a file; newlines at its end do not belong to it.
///
/// # Errors
/// See [`SecretError`].
pub fn from_file(path: &Path) -> Result<SecretString, SecretError> {
    use std::io::Read as _;
    let unreadable = |error: std::io::Error| SecretError::Unreadable(path.to_owned(), error.kind());
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_LENGTH + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    let text = String::from_utf8(bytes).ok().filter(|text| text.len() as u64 <= MAX_LENGTH);
    text.and_then(accept).ok_or_else(|| SecretError::File(path.to_owned()))
}

/// What a backend is shown: the header, and its value marked as sensitive.
///
/// # Errors
/// See [`SecretError`].
pub fn credential(
    credential: &Credential,
    look_up: impl Fn(&str) -> Option<std::ffi::OsString>,
) -> Result<(HeaderName, HeaderValue), SecretError> {
    let secret = from_either(&credential.env, &credential.file, look_up)?;
    let name = credential.header.parse().map_err(|_| SecretError::Credential)?;
    let text = match &credential.scheme {
        Some(scheme) => SecretString::from(format!("{scheme} {}", secret.expose_secret())),
        None => secret,
    };
    let mut value =
        HeaderValue::from_str(text.expose_secret()).map_err(|_| SecretError::Credential)?;
    value.set_sensitive(true);
    Ok((name, value))
}

/// What a backend shows that reports how a job stands.
///
/// # Errors
/// See [`SecretError`].
pub fn report(
    report: &Report,
    look_up: impl Fn(&str) -> Option<std::ffi::OsString>,
) -> Result<SecretString, SecretError> {
    let secret = from_either(&report.env, &report.file, look_up)?;
    if secret.expose_secret().len() >= SHORTEST {
        return Ok(secret);
    }
    let variable = report.env.as_ref().map(|name| format!("${name}"));
    let file = || report.file.iter().map(|path| path.display().to_string()).collect();
    Err(SecretError::Short(variable.unwrap_or_else(file)))
}

/// Where the books in Redis are: a URL, or several with spaces between them, that may hold a
/// password.
///
/// # Errors
/// See [`SecretError`].
pub fn books_url(
    books: &Books,
    look_up: impl Fn(&str) -> Option<std::ffi::OsString>,
) -> Result<SecretString, SecretError> {
    match &books.url {
        Some(OneOrMany::One(url)) => Ok(url.expose().into()),
        Some(OneOrMany::Many(urls)) => {
            Ok(urls.iter().map(Url::expose).collect::<Vec<_>>().join(" ").into())
        }
        None => from_either(&books.url_env, &books.url_file, look_up),
    }
}

fn from_either(
    env: &Option<String>,
    file: &Option<PathBuf>,
    look_up: impl Fn(&str) -> Option<std::ffi::OsString>,
) -> Result<SecretString, SecretError> {
    match (env, file) {
        (Some(name), None) => from_variable(name, look_up),
        (None, Some(path)) => from_file(path),
        _ => Err(SecretError::Credential),
    }
}

/// Whatever may become a header's value must not end it (f62).
fn accept(text: String) -> Option<SecretString> {
    let text = text.trim_end_matches(['\r', '\n']);
    let visible = text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    (!text.trim().is_empty() && visible).then(|| SecretString::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANARY: &str = "canary-5e1f";

    fn look_up(name: &str) -> Option<std::ffi::OsString> {
        match name {
            "TOKEN" => Some(CANARY.into()),
            "BROKEN" => Some(format!("{CANARY}\r\nx: y").into()),
            "EMPTY" => Some("".into()),
            _ => None,
        }
    }

    fn from_env(env: &str) -> Credential {
        Credential {
            header: "Authorization".to_owned(),
            scheme: Some("Bearer".to_owned()),
            env: Some(env.to_owned()),
            file: None,
        }
    }

    #[test]
    fn f81_a_credential_is_usable_and_not_printable() {
        let (name, value) = credential(&from_env("TOKEN"), look_up).unwrap();
        assert_eq!(name, http::header::AUTHORIZATION);
        assert_eq!(value.to_str().unwrap(), format!("Bearer {CANARY}"));
        assert!(!format!("{value:?}").contains(CANARY));
        assert!(!format!("{:?}", from_variable("TOKEN", look_up).unwrap()).contains(CANARY));
    }

    #[test]
    fn f81_an_error_names_the_source_and_never_the_secret() {
        let directory = tempfile::tempdir().unwrap();
        let broken = directory.path().join("broken");
        std::fs::write(&broken, format!("{CANARY}\nsecond line")).unwrap();
        let file = Credential { env: None, file: Some(broken.clone()), ..from_env("") };
        let absent = directory.path().join("absent");
        let no_file = Credential { env: None, file: Some(absent.clone()), ..from_env("") };
        for (from, names) in [
            (from_env("BROKEN"), "$BROKEN"),
            (from_env("EMPTY"), "$EMPTY"),
            (from_env("ABSENT"), "$ABSENT"),
            (file, broken.to_str().unwrap()),
            (no_file, absent.to_str().unwrap()),
        ] {
            let error = credential(&from, look_up).unwrap_err();
            assert!(error.to_string().contains(names), "{error}");
            assert!(!format!("{error} {error:?}").contains(CANARY), "{error}");
        }
    }

    #[test]
    fn d34_a_secret_of_reports_has_24_characters_at_least() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (length, is_long) in [(23, false), (24, true)] {
            let text = "canary-5e1f-".repeat(2)[..length].to_owned();
            std::fs::write(file.path(), format!("{text}\n")).unwrap();
            let env = Report { env: Some("REPORT".to_owned()), file: None };
            let file = Report { env: None, file: Some(file.path().to_owned()) };
            let path = file.file.as_ref().unwrap().display().to_string();
            for (from, name) in [(env, "$REPORT"), (file, &*path)] {
                let read = report(&from, |_| Some(text.clone().into()));
                assert_eq!(read.is_ok(), is_long, "{from:?}");
                let Err(error) = read else { continue };
                let expected = format!("{name}: expected a secret of at least 24 characters");
                assert_eq!(error.to_string(), expected);
                assert!(!format!("{error:?}").contains(CANARY));
            }
        }
    }

    #[test]
    fn f62_a_newline_at_the_end_of_a_file_is_not_the_secret() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{CANARY}\r\n")).unwrap();
        assert_eq!(from_file(file.path()).unwrap().expose_secret(), CANARY);
        std::fs::write(file.path(), "x".repeat(MAX_LENGTH as usize + 1)).unwrap();
        assert!(matches!(from_file(file.path()), Err(SecretError::File(_))));
    }
}
