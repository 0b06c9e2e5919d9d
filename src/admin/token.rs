//! The operator's token: from the environment, from a file, or made at the first start.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::directory::rows::hex;

/// A token's hash. The token itself is not kept.
#[derive(Clone)]
pub struct Token([u8; 32]);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file.
    #[error("the admin token in {path}: {error}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        error: std::io::Error,
    },
    /// Too short to be one.
    #[error("the admin token from {0} is shorter than 24 characters")]
    Short(String),
    /// No random bytes to make one.
    #[error("no randomness for the admin token: {0}")]
    Random(String),
}

/// The shortest token that is believed.
const SHORTEST: usize = 24;

impl Token {
    /// A token by its text.
    pub fn new(text: &SecretString) -> Self {
        Self(Sha256::digest(text.expose_secret().as_bytes()).into())
    }

    /// The token from the environment's value, else from `file`, else from `admin.token` in the
    /// data dir, where one is made (readable by its owner only) unless there is one. Returns the
    /// path of the file it is in, if it is in one.
    ///
    /// # Errors
    /// When a file cannot be read or made, or the token is too short.
    pub fn find(
        environment: Option<SecretString>,
        file: Option<&Path>,
        data_dir: &Path,
    ) -> Result<(Self, Option<PathBuf>), TokenError> {
        let checked = |text: SecretString, from: String| {
            let long_enough = text.expose_secret().len() >= SHORTEST;
            if long_enough { Ok(Self::new(&text)) } else { Err(TokenError::Short(from)) }
        };
        if let Some(text) = environment {
            return Ok((checked(text, "$TOLLGATE_ADMIN_TOKEN".to_owned())?, None));
        }
        let made = data_dir.join("admin.token");
        let path = file.map_or(made.clone(), Path::to_owned);
        if file.is_none() && !made.exists() {
            make(&made)?;
        }
        let text = std::fs::read_to_string(&path)
            .map_err(|error| TokenError::File { path: path.clone(), error })?;
        let token = checked(text.trim().to_owned().into(), path.display().to_string())?;
        Ok((token, Some(path)))
    }

    /// Whether a text is the token, in a time that does not tell how much of it is right (f79).
    pub fn is(&self, text: &str) -> bool {
        let hash: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        self.0.ct_eq(&hash).into()
    }
}

fn make(path: &Path) -> Result<(), TokenError> {
    let mut random = [0; 24];
    getrandom::fill(&mut random).map_err(|error| TokenError::Random(error.to_string()))?;
    let hex = hex(&random);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options
        .open(path)
        .and_then(|mut file| writeln!(file, "tga_{hex}"))
        .map_err(|error| TokenError::File { path: path.to_owned(), error })
}
