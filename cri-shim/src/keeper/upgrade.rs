//! Replacing the keeper's program in place: same pid, same children, same descriptors.

use super::error::Refusal;
use super::server::{Keeper, Outcome, Waiter};
use std::os::fd::OwnedFd;

impl Keeper {
    pub(super) fn upgrade(&mut self, _waiter: Waiter, _fds: Vec<OwnedFd>) -> Outcome {
        Err(Refusal::failed("this keeper can't upgrade in place"))
    }
}

pub(super) fn resume() -> Result<(), String> {
    Err("this keeper can't upgrade in place".to_owned())
}

pub(super) fn check() -> Result<(), String> {
    Err("this keeper can't upgrade in place".to_owned())
}
