//! `tcp`: somebody accepts connections at the member's address.
//!
//! A stopped process whose kernel still accepts passes this check: roles of quorum systems use their own kind. Never:
//! sends or reads a byte.

use std::io::ErrorKind;

use super::wire::{self, Deadline};
use super::{Evidence, Question};

pub(super) fn ask(question: &Question) -> Result<Evidence, String> {
    let port = question.port.ok_or("the check has no port")?;
    match wire::connect(&question.address, port, Deadline::within(question.timeout)) {
        Ok(_) => Ok(Evidence::healthy()),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            Ok(Evidence::unhealthy(format!("nothing listens at {}", wire::authority(&question.address, port))))
        }
        Err(error) => Err(format!("{}: {error}", wire::authority(&question.address, port))),
    }
}
