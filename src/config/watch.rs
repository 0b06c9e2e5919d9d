//! Has the configuration's file changed? Asked by looking at it once a second: that works on every
//! file system and through every kind of link, also where Kubernetes swaps a directory of links
//! underneath (a notification would come from the link's directory, not from the file's), and
//! costs a few system calls.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Config;

/// How often to look.
pub const WATCH_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

/// Device, inode, length and time of change of what a path leads to in the end; `None` for
/// nothing.
type Mark = Option<(u64, u64, u64, i64, i64)>;

/// Looks at the files of a configuration.
#[derive(Debug)]
pub struct Watch {
    file: PathBuf,
    secrets: Vec<PathBuf>,
    read: Vec<Mark>,
    /// Seen once: a file that is still being written has another mark the next time.
    changing: Option<Vec<Mark>>,
}

impl Watch {
    /// Begins with the file that is about to be read.
    pub fn new(file: &Path) -> Self {
        let mut watch =
            Self { file: file.to_owned(), secrets: Vec::new(), read: Vec::new(), changing: None };
        watch.read = watch.marks();
        watch
    }

    /// Looks at what this configuration reads besides: credentials in files.
    pub fn follow(&mut self, config: &Config) {
        let credentials = config.upstream.iter().filter_map(|entry| entry.credential.as_ref());
        self.secrets = credentials.filter_map(|credential| credential.file.clone()).collect();
        self.read.truncate(1);
        self.read.extend(self.secrets.iter().map(|path| mark(path)));
    }

    /// The files are about to be read for another reason: what they are now is no change.
    pub fn reads(&mut self) {
        (self.read, self.changing) = (self.marks(), None);
    }

    /// True once for each change, when the files have been the same for one look.
    pub fn has_changed(&mut self) -> bool {
        let marks = self.marks();
        if marks == self.read {
            self.changing = None;
        } else if self.changing.as_ref() == Some(&marks) {
            (self.read, self.changing) = (marks, None);
            return true;
        } else {
            self.changing = Some(marks);
        }
        false
    }

    fn marks(&self) -> Vec<Mark> {
        std::iter::once(&self.file).chain(&self.secrets).map(|path| mark(path)).collect()
    }
}

fn mark(path: &Path) -> Mark {
    let data = std::fs::metadata(path).ok()?;
    Some((data.dev(), data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f54_a_change_is_seen_once_when_it_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.toml");
        std::fs::write(&file, "a").unwrap();
        let mut watch = Watch::new(&file);
        assert!(!watch.has_changed());
        std::fs::write(&file, "ab").unwrap();
        assert!(!watch.has_changed(), "it may still be written");
        std::fs::write(&file, "abc").unwrap();
        assert!(!watch.has_changed());
        assert!(watch.has_changed());
        assert!(!watch.has_changed());
        std::fs::write(&file, "abcd").unwrap();
        watch.reads();
        assert!(!watch.has_changed() && !watch.has_changed());
        std::fs::remove_file(&file).unwrap();
        assert!(!watch.has_changed());
        assert!(watch.has_changed());
    }

    #[test]
    fn f54_a_swap_of_links_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for version in ["..1", "..2"] {
            std::fs::create_dir(path(version)).unwrap();
            std::fs::write(path(version).join("t.toml"), "same").unwrap();
        }
        std::os::unix::fs::symlink("..1", path("..data")).unwrap();
        std::os::unix::fs::symlink("..data/t.toml", path("t.toml")).unwrap();
        let mut watch = Watch::new(&path("t.toml"));
        std::os::unix::fs::symlink("..2", path("..tmp")).unwrap();
        std::fs::rename(path("..tmp"), path("..data")).unwrap();
        assert!(!watch.has_changed());
        assert!(watch.has_changed());
        let mut config = Config::default();
        let secret = path("token");
        std::fs::write(&secret, "one").unwrap();
        let text = format!(
            "[[upstream]]\nname = \"m\"\nurls = []\ncredential = {{ file = {:?} }}",
            secret.display().to_string()
        );
        config.upstream = toml::from_str::<Config>(&text).unwrap().upstream;
        watch.follow(&config);
        assert!(!watch.has_changed());
        std::fs::write(&secret, "another").unwrap();
        assert!(!watch.has_changed());
        assert!(watch.has_changed(), "a credential that was rotated");
    }
}
