//! Faults of the disk under a real process: see `faults.c`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

/// What the disk does to one process.
pub struct Faults {
    dir: TempDir,
}

/// A call that was made on the books' files: its name, the file, and its result (an error is
/// negative).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    pub call: String,
    pub path: PathBuf,
    pub result: i64,
}

impl Faults {
    /// A disk without faults, so far.
    pub fn new() -> Self {
        let faults = Self { dir: tempfile::tempdir().unwrap() };
        faults.say("");
        faults
    }

    /// From the next call on the disk behaves so: lines of `CALL ACTION [N [PART]]`.
    pub fn say(&self, control: &str) {
        let new = self.dir.path().join("control.new");
        std::fs::write(&new, control).unwrap();
        std::fs::rename(new, self.dir.path().join("control")).unwrap();
    }

    /// What puts a process on this disk.
    pub fn environment(&self) -> [(String, String); 2] {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let library = text(library());
        [("LD_PRELOAD".to_owned(), library), ("TOLLGATE_FAULTS".to_owned(), text(self.dir.path()))]
    }

    /// Every call so far.
    pub fn made(&self) -> Vec<Made> {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        // The last line may be being written.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let made = whole.lines().filter_map(|line| {
            let (call, rest) = line.split_once(' ')?;
            let (path, result) = rest.rsplit_once(' ')?;
            Some(Made { call: call.into(), path: path.into(), result: result.parse().ok()? })
        });
        made.collect()
    }

    /// How many calls of this name had this result, or any.
    pub fn count(&self, call: &str, result: Option<i64>) -> usize {
        let is = |made: &&Made| made.call == call && result.is_none_or(|r| r == made.result);
        self.made().iter().filter(is).count()
    }
}

/// The library, built once.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/faults.c");
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults.so");
        let new = library.with_extension(std::process::id().to_string());
        let output = Command::new("cc")
            .args(["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
            .args([&new, &source])
            .arg("-ldl")
            .output()
            .expect("cc is needed");
        assert!(output.status.success(), "{output:?}");
        std::fs::rename(new, &library).unwrap();
        library
    })
}
