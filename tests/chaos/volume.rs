//! A small volume for the artifacts, which can fill up and fail.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A memory file system where this process may mount one; elsewhere a plain folder, which can fail but not fill up.
pub struct Volume {
    pub folder: PathBuf,
    pub mounted: bool,
}

impl Volume {
    pub fn new(folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=256m,mode=755", "tmpfs"]).arg(folder).output();
        let mounted = mount.is_ok_and(|output| output.status.success());
        Self { folder: folder.to_owned(), mounted }
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut ballast = File::create(self.ballast()).unwrap();
        let piece = vec![0; 1 << 20];
        while ballast.write_all(&piece).is_ok() {}
        while ballast.write_all(&[0]).is_ok() {}
    }

    pub fn empty(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.folder.join("ballast")
    }

    /// Puts a file where the folder of evidence is: whatever is written there fails.
    pub fn break_down(&self) {
        fs::create_dir_all(self.evidence()).unwrap();
        fs::rename(self.evidence(), self.aside()).unwrap();
        fs::write(self.evidence(), "").unwrap();
    }

    pub fn mend(&self) {
        fs::remove_file(self.evidence()).unwrap();
        fs::rename(self.aside(), self.evidence()).unwrap();
    }

    fn evidence(&self) -> PathBuf {
        self.folder.join("verdicts")
    }

    fn aside(&self) -> PathBuf {
        self.folder.join("verdicts-aside")
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.mounted {
            Command::new("umount").arg("--lazy").arg(&self.folder).status().ok();
        }
    }
}
