//! The first hops: what the remotes offer becomes the newest commit that this node believes, or a reason to complain.
//!
//! A node's floor is what it accepted, on its disk and in the store; peers are heard, and only ever raise an alarm. Never: a
//! lower floor, whatever was lost; a run that ends because the source is bad while there is something to enforce.

use std::time::Duration;

use super::{Mode, PipelineError, World, store_error};
use crate::git::GitError;
use crate::lock::quorum::Because;
use crate::peers::{self, Heard};
use crate::reason::{self, chain};
use crate::trust::lineage::{Hearsay, Lineage, TRAIL_MAX, compare, sample};
use crate::trust::{Accepted, Verified};

/// The newest commit that is verified, and what is wrong with what the remotes offer.
pub struct Source {
    pub verified: Verified,
    pub complaint: Option<Because>,
}

#[tracing::instrument(skip_all, fields(node = %world.settings.node))]
pub fn fetch_and_verify(world: &mut World<'_>) -> Result<Source, PipelineError> {
    let before = world.accepted.accepted().cloned();
    world.inquiry.at = None;
    let heard = hear(world)?;
    let offered = world.repository.fetch(world.root, before.as_ref());
    let offered = offered.and_then(|fetched| fetched.verify(world.root, before.as_ref()));
    let complaint = match offered {
        Ok(verified) => match below_floor(world, &verified, before.as_ref(), heard.as_ref())? {
            None => {
                accept(world, &verified, before.as_ref())?;
                let complaint = listen(world, &verified, heard)?;
                world.inquiry.at = complaint.is_none().then(|| world.clock.awake());
                return Ok(Source { verified, complaint });
            }
            Some(because) => because,
        },
        Err(GitError::Refused(mut refusal)) => {
            // What was accepted may have problems of its own: then an earlier commit is in force.
            if let Some(good) = world.ledger.good()? {
                refusal.last_good = Some(good.commit);
            }
            Because::new(refusal.reason, None, refusal.to_string()).ends(refusal.reason.mend)
        }
        Err(error) => Because::new(error.reason(), None, chain(&error)),
    };
    match before.and_then(|accepted| world.repository.resume(world.root, &accepted)) {
        Some(verified) => Ok(Source { verified, complaint: Some(complaint) }),
        None => Err(PipelineError::NothingToEnforce(Box::new(complaint))),
    }
}

/// What was accepted last, without asking anybody.
pub fn accepted(world: &World<'_>) -> Result<Source, PipelineError> {
    let accepted = world.accepted.accepted();
    match accepted.and_then(|accepted| world.repository.resume(world.root, accepted)) {
        Some(verified) => Ok(Source { verified, complaint: None }),
        None => Err(PipelineError::NothingToEnforce(Box::new(Because::new(
            reason::SOURCE_UNREACHABLE,
            None,
            "this node has accepted no commit yet".to_owned(),
        )))),
    }
}

/// From the store to the disk, durably: the objects first, then that they count.
fn accept(world: &mut World<'_>, verified: &Verified, before: Option<&Accepted>) -> Result<(), PipelineError> {
    if before == Some(verified.accepted()) {
        return Ok(());
    }
    for commit in verified.new_commits() {
        tracing::info!(commit = %commit.id, subject = %commit.subject, "verified: {}", commit.acceptance);
    }
    world.repository.admit(verified).map_err(|source| store_error(verified.commit(), source))?;
    let floor = before.filter(|before| before.binds(world.root)).map_or(0, |before| before.seq);
    world.ledger.lift(floor, verified.new_commits())?;
    if let Some(before) = before.filter(|before| !before.binds(world.root)) {
        reintroduced(world, before)?;
    }
    world.accepted.keep(verified.accepted())?;
    Ok(())
}

/// trust.toml has another introduction than what was accepted so far: the operator's way to begin anew, never a silent one.
fn reintroduced(world: &mut World<'_>, before: &Accepted) -> Result<(), PipelineError> {
    let root = world.root;
    let now = world.clock.now();
    let what = serde_json::json!({
        "what": "re-introduction",
        "at": now,
        "from": { "fleet": before.fleet, "introduction": before.introduction, "commit": before.commit, "seq": before.seq },
        "to": { "fleet": root.fleet, "introduction": root.introduction.commit, "signer": root.introduction.signer,
                "seq": root.introduction.seq },
    });
    tracing::warn!(from = %before.introduction, to = %root.introduction.commit, "trust.toml names a new introduction");
    world.ledger.note(now, &what)?;
    if let Ok(store) = world.store
        && let Err(error) = peers::audit(store, &world.settings.node, &what)
    {
        tracing::warn!(%error, "the new introduction could not be told to the store");
    }
    Ok(())
}

/// What is offered must not be less than this node knew, also if its disk forgot it or was set back.
fn below_floor(
    world: &World<'_>,
    verified: &Verified,
    before: Option<&Accepted>,
    heard: Option<&Heard>,
) -> Result<Option<Because>, PipelineError> {
    let told = heard.and_then(|heard| heard.own.as_ref());
    let told = told.filter(|told| told.introduction == world.root.introduction.commit);
    let refuse = |floor: u64, who: &str| {
        let (commit, seq) = (verified.commit().short(), verified.seq());
        let sentence = format!("{commit} is number {seq} of the branch; {who} had number {floor}");
        Some(Because::new(reason::ROLLBACK_FLOOR, None, sentence))
    };
    if let Some(known) = world.ledger.good()?.filter(|known| before.is_none() && verified.seq() < known.seq) {
        return Ok(refuse(known.seq, "by its ledger this node"));
    }
    let Some(told) = told else { return Ok(None) };
    let Some(ahead) = verified.seq().checked_sub(told.seq) else {
        return Ok(refuse(told.seq, "by the store this node"));
    };
    if before.is_some() && ahead == 0 && verified.commit() == &told.commit {
        return Ok(None);
    }
    let back = usize::try_from(ahead).unwrap_or(usize::MAX);
    let trail = trail(world, verified, back.saturating_add(1))?;
    let same = trail.get(back).is_some_and(|digest| Some(digest) == told.trail.first());
    Ok((!same).then(|| {
        let (commit, seq, known) = (verified.commit().short(), told.seq, told.commit.short());
        let sentence =
            format!("{commit} has another commit at number {seq} than {known}, which this node told the store");
        Because::new(reason::NOT_DESCENDANT, None, sentence)
    }))
}

fn trail(world: &World<'_>, verified: &Verified, max: usize) -> Result<Vec<String>, PipelineError> {
    let trail = world.repository.trail(verified.commit(), max, &world.root.limits);
    trail.map_err(|source| store_error(verified.commit(), source))
}

fn hear(world: &mut World<'_>) -> Result<Option<Heard>, PipelineError> {
    let Ok(store) = world.store else { return Ok(None) };
    let round = world.clock.now().as_second().unsigned_abs() / world.settings.poll.secs;
    let peers = sample(world.ledger.peers()?, &world.settings.node, round);
    let heard = peers::hear(store, &world.settings.node, &peers);
    Ok(heard.inspect_err(|error| tracing::debug!(%error, "peers are not heard")).ok())
}

/// A source may lag behind for as many polls; then it is stale.
const PATIENCE_POLLS: u64 = 3;

/// Compares with what the peers told, and tells them.
fn listen(world: &mut World<'_>, verified: &Verified, heard: Option<Heard>) -> Result<Option<Because>, PipelineError> {
    let (Some(heard), Ok(store)) = (heard, world.store) else { return Ok(None) };
    let told = heard.own.filter(|own| own.commit == *verified.commit() && own.seq == verified.seq());
    let is_new = told.is_none();
    let own = match told {
        Some(own) => own,
        None => Lineage {
            introduction: world.root.introduction.commit.clone(),
            commit: verified.commit().clone(),
            seq: verified.seq(),
            trail: trail(world, verified, TRAIL_MAX)?,
        },
    };
    if is_new
        && world.mode == Mode::Apply
        && let Err(error) = peers::tell(store, &world.settings.node, &own)
    {
        tracing::warn!(%error, "what was verified did not reach the store; it follows with the next run");
    }
    let hearsay = compare(&own, heard.peers.iter().map(|(peer, lineage)| (peer, lineage)));
    let behind_since = match &hearsay {
        Hearsay::Behind { .. } => Some(world.ledger.behind_since()?.unwrap_or_else(|| world.clock.now())),
        Hearsay::Level | Hearsay::Forked { .. } => None,
    };
    if world.mode == Mode::Apply {
        world.ledger.set_behind_since(behind_since)?;
    }
    let poll = world.settings.poll;
    let patience = Duration::from_secs(PATIENCE_POLLS * (poll.secs + poll.jitter_secs));
    let waited = behind_since.map(|since| world.clock.now().duration_since(since).unsigned_abs()).unwrap_or_default();
    let (commit, seq) = (own.commit.short(), own.seq);
    Ok(match hearsay {
        Hearsay::Forked { peer, theirs, seq } => {
            let sentence = format!(
                "{peer} verified another commit at number {seq} of the branch (its tip is {}, this node's is {commit})",
                theirs.commit.short()
            );
            Some(Because::new(reason::FORKED_SOURCE, None, sentence).ends(reason::FORKED_SOURCE.mend))
        }
        Hearsay::Behind { peer, theirs } if waited > patience => {
            let sentence = format!(
                "the remotes show {commit} (number {seq}) while {peer} has verified {} (number {}), for {} s",
                theirs.commit.short(),
                theirs.seq,
                waited.as_secs()
            );
            Some(Because::new(reason::STALE_SOURCE, None, sentence).ends(reason::STALE_SOURCE.mend))
        }
        Hearsay::Level | Hearsay::Behind { .. } => None,
    })
}
