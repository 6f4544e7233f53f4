//! Why what a remote offers is not believed, as people read it.
//!
//! PURE. Never: a control character of a commit in it.

use std::fmt;

use crate::name::CommitId;
use crate::reason::Reason;

/// Why what a remote offers is not believed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub reason: Reason,
    /// The branch, as people call it.
    pub branch: String,
    /// The commit that breaks the rule; it need not be the tip.
    pub commit: CommitId,
    pub subject: String,
    /// E-mail address as the commit says it: anybody can write anything there.
    pub author: String,
    /// Fingerprint of the key that signed it, if one did.
    pub signer: Option<String>,
    /// The rule that it breaks, naming who could have kept it.
    pub rule: String,
    /// What stays in force.
    pub last_good: Option<CommitId>,
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = self.commit.short();
        writeln!(f, "refused {short} on {}: {}", self.branch, self.reason)?;
        writeln!(f, "  commit   {short} \"{}\" by {}", self.subject, self.author)?;
        if let Some(signer) = &self.signer {
            writeln!(f, "  signer   {signer}")?;
        }
        writeln!(f, "  rule     {}", self.rule)?;
        match &self.last_good {
            Some(good) => {
                writeln!(f, "  effect   this node keeps enforcing {}; drift is still repaired", good.short())?
            }
            None => writeln!(f, "  effect   this node has accepted nothing yet and does nothing")?,
        }
        write!(f, "  mend     {}", self.reason.mend)
    }
}
