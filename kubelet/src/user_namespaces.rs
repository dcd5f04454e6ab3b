//! The host's ids of pods with `hostUsers: false`: a range for each, which no other pod of the node has.
//!
//! A range belongs to a pod as long as the file `userns` lies in the pod's folder, which goes when all else of the pod
//! is gone. All ids of the host but the first range are given out; what `/etc/subuid` grants others isn't looked at.
//! There is no other record: a kubelet that is started again finds every range where it was.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cri_api::v1::{IdMapping, NamespaceMode, UserNamespace};
use serde::{Deserialize, Serialize};

const FILE: &str = "userns";

/// A pod that can't have a range.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none left.
    #[error("no range of {0} ids is free for the pod's user namespace (userNamespaces.idsPerPod)")]
    Full(u32),
    /// A file can't be read or written.
    #[error("{operation} {}: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// With which.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file says something that was never written.
    #[error("{} is damaged ({cause}): remove it when its pod is gone", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// How.
        cause: String,
    },
}

/// The file's content, in upstream's form.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

/// Who gives the ranges out.
pub struct Ranges {
    pods: PathBuf,
    ids_per_pod: u32,
    /// Two at a time would find the same one free.
    turn: Mutex<()>,
}

impl Ranges {
    /// For the pods with folders in `pods`.
    pub fn new(pods: PathBuf, ids_per_pod: u32) -> Self {
        Self {
            pods,
            ids_per_pod,
            turn: Mutex::new(()),
        }
    }

    /// The pod's range: the one that it has, or a free one, which it keeps from here on. It blocks.
    ///
    /// # Errors
    /// [`Error`]: nothing was given out.
    pub fn ensure(&self, uid: &str) -> Result<IdMapping, Error> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = self.pods.join(uid);
        if let Some(mapping) = read(&folder.join(FILE))? {
            return Ok(mapping);
        }
        let mut taken = BTreeSet::new();
        let pods = std::fs::read_dir(&self.pods).map_err(at("list", &self.pods))?;
        for pod in pods {
            let pod = pod.map_err(at("list", &self.pods))?.path();
            if let Some(used) = read(&pod.join(FILE))? {
                // One of another length may lie across several.
                let last = used.host_id.saturating_add(used.length - 1);
                taken.extend(used.host_id / self.ids_per_pod..=last / self.ids_per_pod);
            }
        }
        // The first is the host's own users', the last ends with what is no id.
        let free = (1..u32::MAX / self.ids_per_pod).find(|range| !taken.contains(range));
        let mapping = IdMapping {
            host_id: free.ok_or(Error::Full(self.ids_per_pod))? * self.ids_per_pod,
            container_id: 0,
            length: self.ids_per_pod,
        };
        write(&folder, mapping)?;
        Ok(mapping)
    }
}

/// As CRI has it.
pub fn options(mapping: IdMapping) -> UserNamespace {
    UserNamespace {
        mode: NamespaceMode::Pod as i32,
        uids: vec![mapping],
        gids: vec![mapping],
    }
}

fn at<'a>(operation: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + 'a {
    move |source| Error::File {
        operation,
        path: path.to_owned(),
        source,
    }
}

fn read(path: &Path) -> Result<Option<IdMapping>, Error> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(at("read", path))?,
    };
    let damaged = |cause: String| Error::Damaged {
        path: path.to_owned(),
        cause,
    };
    let record: Record =
        serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    match (
        record.uid_mappings.as_slice(),
        record.gid_mappings.as_slice(),
    ) {
        ([uids], [gids]) if uids == gids && uids.length > 0 => Ok(Some(IdMapping {
            host_id: uids.host_id,
            container_id: uids.container_id,
            length: uids.length,
        })),
        _ => Err(damaged("not one mapping for users and groups".into())),
    }
}

/// Under another name first, so that the file is whole or not there.
fn write(folder: &Path, mapping: IdMapping) -> Result<(), Error> {
    let one = vec![Mapping {
        host_id: mapping.host_id,
        container_id: mapping.container_id,
        length: mapping.length,
    }];
    let record = Record {
        uid_mappings: one.clone(),
        gid_mappings: one,
    };
    let (path, new) = (folder.join(FILE), folder.join("userns.new"));
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| Ok(serde_json::to_vec(&record)?))
        .and_then(|text| {
            let mut file = std::fs::File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&new, &path));
    written.map_err(at("write", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_never_overlap_outlast_the_kubelet_and_are_free_when_the_pod_is_gone() {
        let dir = tempfile::tempdir().expect("a folder");
        let ranges = |ids| Ranges::new(dir.path().to_owned(), ids);
        let first = ranges(65_536).ensure("a").expect("a range");
        assert_eq!(
            (first.host_id, first.container_id, first.length),
            (65_536, 0, 65_536)
        );
        let second = ranges(65_536).ensure("b").expect("a range");
        assert_eq!(second.host_id, 131_072);
        assert_eq!(ranges(65_536).ensure("a").expect("the same"), first);
        let text = std::fs::read_to_string(dir.path().join("a/userns")).expect("a file");
        assert_eq!(
            text,
            r#"{"uidMappings":[{"hostId":65536,"containerId":0,"length":65536}],"gidMappings":[{"hostId":65536,"containerId":0,"length":65536}]}"#
        );
        // With another length than before, what is given out doesn't touch what was.
        let wide = ranges(131_072).ensure("c").expect("a range");
        assert_eq!(wide.host_id, 262_144);
        std::fs::remove_dir_all(dir.path().join("a")).expect("gone");
        assert_eq!(ranges(65_536).ensure("d").expect("a range"), first);
    }

    #[test]
    fn nothing_is_given_out_beside_a_damaged_file_or_when_all_is_taken() {
        let dir = tempfile::tempdir().expect("a folder");
        let ranges = Ranges::new(dir.path().to_owned(), 1 << 31);
        assert!(matches!(ranges.ensure("a"), Err(Error::Full(_))));
        std::fs::create_dir(dir.path().join("b")).expect("made");
        std::fs::write(dir.path().join("b/userns"), "{}").expect("written");
        let ranges = Ranges::new(dir.path().to_owned(), 65_536);
        let error = ranges.ensure("a").expect_err("unknown").to_string();
        assert!(error.contains("b/userns is damaged"), "{error}");
    }
}
