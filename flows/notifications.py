"""Who hears of a scheduled run that fails: an automation of Prefect that posts one message a run to a webhook.

The `notify` line of conf/control.yaml switches it on. Serving the deployments brings the automation to what the file
says: makes it, changes it, or removes it with all that belongs to it.
"""

from uuid import UUID

from prefect.automations import Automation, EventTrigger, SendNotification
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import PrefectClient, get_client
from prefect.exceptions import ObjectNotFound

NAME = "scheduled-run-failed"  # of the automation and of the block that keeps the address, encrypted
SUBJECT = "{{ flow.name }}/{{ deployment.name }}: run {{ flow_run.name }} {{ flow_run.state.name | lower }}"
BODY = "{{ flow_run.state.message }}\n{{ flow_run | ui_url }}"


async def arrange(webhook: str | None, deployments: list[UUID]) -> None:
    """Let the webhook hear of failed and crashed runs of these deployments; without one, remove what did so before."""
    async with get_client() as client:
        existing = await client.read_automations_by_name(NAME)
        if webhook is None or not deployments:
            await _remove(client, existing)
            return
        wanted = _automation(await _block(webhook).asave(NAME, overwrite=True, client=client), deployments)
    if existing:
        wanted.id = existing[0].id
        await wanted.aupdate()
    else:
        await wanted.acreate()


async def _remove(client: PrefectClient, existing: list[Automation]) -> None:
    for automation in existing:
        await client.delete_automation(automation.id)
    try:
        slug = CustomWebhookNotificationBlock.get_block_type_slug()
        block = await client.read_block_document_by_name(NAME, slug)
    except ObjectNotFound:
        return
    await client.delete_block_document(block.id)


def _block(webhook: str) -> CustomWebhookNotificationBlock:
    """Posts {"text": ...}, which Slack, Mattermost, Google Chat and many others take."""
    return CustomWebhookNotificationBlock(
        name="SAEExplainer",
        url="{{address}}",
        json_data={"text": "{{subject}}\n{{body}}"},
        secrets={"address": webhook},
    )


def _automation(block: UUID, deployments: list[UUID]) -> Automation:
    """Once a run, whatever the name of the state in which it failed or crashed."""
    return Automation(
        name=NAME,
        description="From conf/control.yaml (notify): changed here, it is changed back when the deployments are served",
        trigger=EventTrigger(
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": "prefect.flow-run.*", "prefect.state-type": ["FAILED", "CRASHED"]},
            match_related={
                "prefect.resource.role": "deployment",
                "prefect.resource.id": [f"prefect.deployment.{deployment}" for deployment in deployments],
            },
            for_each={"prefect.resource.id"},
        ),
        actions=[SendNotification(block_document_id=block, subject=SUBJECT, body=BODY)],
    )
