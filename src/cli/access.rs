//! What engineers' commands work on: a fleet repository and a store.
//!
//! `--repo` is a folder (its work tree as it is) and may hold uncommitted changes. Never: a node's own state.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Failure;
use crate::diagnostics::{self, Color, Style};
use crate::disk;
use crate::fleet::load::{self, Loaded};
use crate::fleet::problem::Problem;
use crate::fleet::tree::Tree;
use crate::git::Workspace;
use crate::lock::store::{self, LockStore};
use crate::name::EnvironmentName;
use crate::reason::{self, Exit, chain};
use crate::settings::ClientSettings;

#[derive(clap::Args, Clone)]
pub struct Access {
    /// Fleet repository: a directory in its work tree. Default: `repo` of the client settings, else the current directory
    #[arg(long, global = true, help_heading = "Which fleet", value_name = "DIR")]
    pub repo: Option<PathBuf>,
    /// Environment. Default: the client settings', else `default_environment` of fleet.toml
    #[arg(long, global = true, help_heading = "Which fleet", value_name = "NAME")]
    pub env: Option<String>,
    /// Client settings: your own access to the store. Default: ~/.config/converger/client.toml
    #[arg(
        long,
        global = true,
        help_heading = "Which fleet",
        value_name = "FILE",
        env = "CONVERGER_CLIENT",
        hide_env_values = true
    )]
    pub client: Option<PathBuf>,
}

/// Colours are taken out again where nobody sees them.
pub const STYLED: Style = Style { color: Color::On, width: 120 };

/// Local settings are small.
const SETTINGS_BYTES_MAX: u64 = 1 << 20;

impl Access {
    pub fn client(&self) -> Result<ClientSettings, Failure> {
        let none = ClientSettings::default();
        let path = match &self.client {
            Some(path) => path.clone(),
            None => match home() {
                Some(home) => home.join(".config/converger/client.toml"),
                None => return Ok(none),
            },
        };
        let bytes = disk::read_bounded(&path, SETTINGS_BYTES_MAX).map_err(|e| Failure::usage(chain(&e)))?;
        let Some(bytes) = bytes else {
            return match &self.client {
                Some(path) => Err(Failure::usage(format!("{}: no such file", path.display()))),
                None => Ok(none),
            };
        };
        ClientSettings::parse(&String::from_utf8_lossy(&bytes), &path).map_err(|e| Failure::usage(e.to_string()))
    }

    /// The top folder of the fleet repository.
    pub fn folder(&self) -> Result<PathBuf, Failure> {
        let named = match &self.repo {
            Some(path) => Some(path.clone()),
            None => self.client()?.repo.map(PathBuf::from),
        };
        let start = named.clone().unwrap_or_else(|| PathBuf::from("."));
        let start = start.canonicalize().map_err(|e| Failure::usage(format!("{}: {e}", start.display())))?;
        let found = start.ancestors().find(|folder| folder.join("fleet.toml").is_file()).map(Path::to_owned);
        found.ok_or_else(|| {
            Failure::usage(format!(
                "{} is no fleet repository (no fleet.toml here or above); name one with --repo, or make one with `converger init`",
                start.display()
            ))
        })
    }

    /// The work tree as it is, uncommitted changes included.
    pub fn work_tree(&self) -> Result<Arc<Tree>, Failure> {
        let folder = self.folder()?;
        let tree = Workspace::open(&folder).and_then(|workspace| workspace.tree_of_worktree());
        tree.map(Arc::new).map_err(|e| Failure::new(Exit::Repository, chain(&e)))
    }

    pub fn environment(&self) -> Result<Option<EnvironmentName>, Failure> {
        Ok(match &self.env {
            Some(name) => Some(EnvironmentName::new(name.clone())),
            None => self.client()?.environment,
        })
    }

    /// The environment of a tree, or the text of all its problems.
    pub fn load(&self, tree: &Arc<Tree>) -> Result<Loaded, Failure> {
        let environment = self.environment()?;
        load::load(tree, environment.as_ref()).map_err(|problems| problems_failure(&problems, tree))
    }

    pub fn store(&self, fleet: &str, environment: &EnvironmentName) -> Result<Box<dyn LockStore>, Failure> {
        let Some(settings) = self.client()?.store else {
            return Err(Failure::usage(
                "no store is named: add a [store] table to ~/.config/converger/client.toml (the same as in a node's agent.toml)",
            ));
        };
        store::open(settings.into(), fleet, environment.as_str())
            .map_err(|e| Failure::of(reason::STORE_UNREACHABLE, chain(&e)))
    }
}

/// All problems, rendered, as one failure.
pub fn problems_failure(problems: &[Problem], tree: &Tree) -> Failure {
    let text = diagnostics::render(problems, tree, STYLED);
    Failure::new(Exit::Repository, format!("{text}{}", diagnostics::count(problems)))
}

pub(super) fn home() -> Option<PathBuf> {
    std::env::home_dir()
}
