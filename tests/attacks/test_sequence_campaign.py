"""A small campaign of interleaved sequences with hostile ids.

It is alone because it is the only test of that campaign.
"""

from support.in_process_server import InProcessServer

from attacks import sequence_campaign


def test_no_answer_is_wrong(tmp_path):
    sequence_campaign.save_models(tmp_path)
    server = InProcessServer(tmp_path)
    try:
        address = f"127.0.0.1:{server.port}"
        campaign = sequence_campaign.run_campaign(address, steps=4000, callers=4)
    finally:
        server.stop()
    assert not campaign.wrong
    assert min(campaign.counts.values()) > 0
    assert campaign.counts["steps"] >= 4000
