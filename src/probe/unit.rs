//! `unit`: what the service manager says about the own unit.
//!
//! Never: asked of a peer; nobody can look into another machine's service manager.

use super::{Evidence, Question};
use crate::name::UnitName;
use crate::resource::unit::Active;

/// The state of a unit of this host; `Err`: the service manager did not say.
pub type AskUnit = dyn Fn(&UnitName) -> Result<Active, String> + Send + Sync;

pub(super) fn ask(question: &Question, unit_state: &AskUnit) -> Result<Evidence, String> {
    if !question.own {
        return Err("cannot be asked of a peer".to_owned());
    }
    let unit = &question.unit;
    Ok(match unit_state(unit)? {
        Active::Active | Active::Reloading => Evidence::healthy(),
        Active::Activating => Evidence::unhealthy(format!("{unit} is still starting")),
        Active::Deactivating => Evidence::unhealthy(format!("{unit} is stopping")),
        Active::Inactive => Evidence::unhealthy(format!("{unit} is stopped")),
        Active::Failed => Evidence::unhealthy(format!("{unit} has failed")),
    })
}
