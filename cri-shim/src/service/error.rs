//! What an operation may fail with, and the gRPC code that a client gets for it, as upstream's runtimes choose it.

use std::io;

use tonic::{Code, Status};

use super::cdi;
use crate::keeper::KeeperError;
use crate::{cni, image, sandbox, spec};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("sandbox {0:?} not found")]
    NoSandbox(String),
    #[error("container {0:?} not found")]
    NoContainer(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Precondition(String),
    #[error("{0}")]
    Exists(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("{0}")]
    Deadline(String),
    #[error("{0}")]
    Busy(String),
    #[error(transparent)]
    Spec(#[from] spec::Error),
    #[error(transparent)]
    Cdi(#[from] cdi::Error),
    #[error(transparent)]
    User(#[from] spec::UserError),
    #[error(transparent)]
    Image(#[from] image::Error),
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    #[error(transparent)]
    Journal(#[from] journal::Error),
    #[error("sandbox network: {0}")]
    Network(#[from] cni::Error),
    #[error(transparent)]
    Cgroup(#[from] sandbox::CgroupError),
    #[error(transparent)]
    Plan(#[from] oci_runtime::Error),
    #[error(transparent)]
    Kernel(#[from] linux::Error),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("{}", join(.0))]
    Several(Vec<Error>),
}

impl Error {
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// One error of many; `None` of none.
    pub fn of(mut errors: Vec<Error>) -> Option<Self> {
        match errors.len() {
            0 => None,
            1 => errors.pop(),
            _ => Some(Self::Several(errors)),
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::NoSandbox(_) | Self::NoContainer(_) => Code::NotFound,
            Self::Image(image::Error::NotFound(_)) => Code::NotFound,
            Self::Image(image::Error::Pull { why, .. }) if why.contains("(404)") => Code::NotFound,
            Self::Invalid(_) | Self::Spec(_) | Self::User(_) => Code::InvalidArgument,
            Self::Image(
                image::Error::Reference(_) | image::Error::Digest(_) | image::Error::Ambiguous(_),
            ) => Code::InvalidArgument,
            Self::Cdi(cdi::Error::Name(_)) => Code::InvalidArgument,
            Self::Plan(oci_runtime::Error::Spec { .. }) => Code::InvalidArgument,
            Self::Precondition(_) => Code::FailedPrecondition,
            Self::Exists(_) => Code::AlreadyExists,
            Self::Unsupported(_) => Code::Unimplemented,
            Self::Deadline(_) => Code::DeadlineExceeded,
            Self::Busy(_) => Code::ResourceExhausted,
            Self::Keeper(KeeperError::Disconnected) => Code::Unavailable,
            _ => Code::Unknown,
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Status::new(error.code(), error.to_string())
    }
}

fn join(errors: &[Error]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}
