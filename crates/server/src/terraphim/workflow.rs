//! A text with code: which of its blocks run, one after the other, and where that stops.

use super::{
    Asker, agents,
    asked::{self, ParseExecute},
    config::Config,
    run::{Listener, Piece},
    settings::MAX_RUNS,
    step::{Step, Steps, Waiting},
    told,
};
use offshoot_api::v1::{InvalidField, Vm};
use offshoot_code::{Block, Confidence, Intent, Language, extract};
use offshoot_types::{ErrorCode, Failure};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// A text to be gone through.
#[derive(Debug)]
pub struct Workflow {
    pub asker: Asker,
    pub asked: ParseExecute,
    pub listener: Listener,
    pub cancel: CancellationToken,
}

/// What came of the blocks.
#[derive(Debug, Default)]
struct Done {
    blocks: Vec<Value>,
    results: Vec<Value>,
    errors: Vec<String>,
    held: Vec<Value>,
    failed: bool,
    rolled_back: bool,
    /// The block at which it stopped.
    stopped_at: Option<usize>,
}

/// What is to be run of a text.
struct Plan<'a> {
    agent: &'a str,
    config: &'a Config,
    chosen: Vec<usize>,
}

impl Workflow {
    /// An error says that nothing ran.
    pub async fn run(self, waiting: Option<&Waiting>) -> Result<Value, Failure> {
        let ParseExecute {
            agent_id,
            llm_response,
            auto_execute,
            auto_execute_threshold,
            vm_config,
            approvals,
        } = self.asked;
        let agent = asked::name("agent_id", &agent_id)?;
        let asker = self.asker.on_behalf_of(agent);
        let threshold = auto_execute_threshold.unwrap_or(Confidence::THRESHOLD.as_f64());
        if !(0.0..=1.0).contains(&threshold) {
            return Err(InvalidField::new("auto_execute_threshold", "it is not between 0 and 1").into());
        }
        let config = Config::of(vm_config)?;
        let blocks = extract(&llm_response);
        let intent = Intent::of(&llm_response);
        let sure = |block: &Block| block.language().is_some() && block.confidence.as_f64() >= threshold;
        let chosen: Vec<usize> =
            (0..blocks.len()).filter(|index| auto_execute && blocks.get(*index).is_some_and(sure)).collect();
        if chosen.len() > MAX_RUNS {
            let message = format!("{} blocks would be run, and {MAX_RUNS} are the most", chosen.len());
            return Err(Failure::new(ErrorCode::InvalidArgument, message).hint("send the text in parts"));
        }
        let begun = json!({ "blocks": blocks.len(), "to_execute": chosen.len() });
        self.listener.say("workflow_started", begun).await;
        let mut done = Done { blocks: blocks.iter().map(told::block).collect(), ..Done::default() };
        let mut vm = None;
        if !chosen.is_empty() {
            let languages: Vec<Language> =
                chosen.iter().filter_map(|index| blocks.get(*index)?.language()).collect();
            let site = agents::site(&asker, agent, &config, None, &languages).await?;
            let steps = Steps {
                asker: &asker,
                vm: &site,
                config: &config,
                approvals: &approvals,
                requirements: &[],
                waiting,
                cancel: &self.cancel,
            };
            let plan = Plan { agent, config: &config, chosen };
            done.go_through(&steps, &blocks, &plan, &self.listener).await;
            vm = Some(site);
        }
        Ok(done.told(vm.as_ref(), &intent, &config))
    }
}

impl Done {
    async fn go_through(
        &mut self,
        steps: &Steps<'_>,
        blocks: &[Block],
        plan: &Plan<'_>,
        listener: &Listener,
    ) {
        for index in &plan.chosen {
            let Some((block, language)) =
                blocks.get(*index).and_then(|block| Some((block, block.language()?)))
            else {
                continue;
            };
            if steps.cancel.is_cancelled() {
                self.stop(*index, "it was cancelled");
                return;
            }
            let piece = Piece {
                agent: plan.agent.into(),
                language,
                code: block.code.clone(),
                working_dir: plan.config.working_dir.clone(),
                timeout: plan.config.timeout,
                fresh: plan.config.fresh,
            };
            let listener = Listener { block: Some(*index), ..listener.clone() };
            listener.say("block_started", json!({ "language": language.as_str() })).await;
            let stop = match steps.run(&piece, block.hazard, &listener).await {
                Ok(Step::Held { approval, reason }) => {
                    self.hold(*index, block, language, &approval.to_string(), &reason);
                    // What comes after it may rest on it.
                    true
                }
                Ok(Step::Ran(ran, kept)) => {
                    let mut result = told::execution(steps.vm, &piece, &ran, &kept, None);
                    result["block_index"] = json!(index);
                    listener.say("block_completed", result.clone()).await;
                    self.results.push(result);
                    self.mark(*index, "execution_id", &ran.execution);
                    self.rolled_back |= kept.rolled_back;
                    if let Some(problem) = &kept.problem {
                        self.errors.push(format!("block {index}: {problem}"));
                    }
                    let failed = !ran.success() || kept.problem.is_some();
                    self.failed |= failed;
                    failed && plan.config.stop_on_failure
                }
                Err(failure) => {
                    let failure = one_line(&failure);
                    listener.say("block_failed", json!({ "error": failure })).await;
                    self.errors.push(format!("block {index}: {failure}"));
                    self.mark(*index, "error", &failure);
                    self.failed = true;
                    plan.config.stop_on_failure
                }
            };
            if stop {
                self.stopped_at = Some(*index);
                self.skip_after(*index, plan);
                return;
            }
        }
    }

    fn stop(&mut self, index: usize, why: &str) {
        self.failed = true;
        self.stopped_at = Some(index);
        self.errors.push(format!("block {index}: {why}"));
    }

    fn hold(&mut self, index: usize, block: &Block, language: Language, approval: &str, reason: &str) {
        self.mark(index, "approval_id", approval);
        self.held.push(json!({
            "block_index": index,
            "approval_id": approval,
            "reason": reason,
            "language": language.as_str(),
            "code": block.code,
            "risk": told::risk(block.hazard),
        }));
    }

    fn mark(&mut self, index: usize, key: &str, value: &str) {
        if let Some(block) = self.blocks.get_mut(index) {
            block["metadata"][key] = json!(value);
        }
    }

    fn skip_after(&mut self, index: usize, plan: &Plan<'_>) {
        for later in plan.chosen.iter().filter(|later| **later > index) {
            self.mark(*later, "skipped", &format!("the workflow stopped at block {index}"));
        }
    }

    fn told(self, vm: Option<&Vm>, intent: &Intent, config: &Config) -> Value {
        json!({
            "code_blocks": self.blocks,
            "execution_results": self.results,
            "errors": self.errors,
            "held": self.held,
            "success": !self.failed && self.held.is_empty(),
            "rolled_back": self.rolled_back,
            "rolledBack": self.rolled_back,
            "stopped_at": self.stopped_at,
            "vm_id": vm.map(|vm| vm.id),
            "intent": told::intent(intent),
            "warnings": config.warnings,
        })
    }
}

/// A failure as one line.
fn one_line(failure: &Failure) -> String {
    match &failure.hint {
        Some(hint) => format!("{} ({hint})", failure.message),
        None => failure.message.clone(),
    }
}
