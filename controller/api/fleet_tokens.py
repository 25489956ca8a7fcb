"""Enrolment tokens for operators."""

import grpc

from controller.api.base import ApiBase
from controller.api.convert_device import time_to_wire
from controller.services import tokens
from controller.services.tokens import DEFAULT_TTL_S, TokenView
from lighterman.v1 import fleet_pb2


class TokensApi(ApiBase):
    """The token methods of FleetService."""

    def CreateToken(
        self, request: fleet_pb2.CreateTokenRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.CreateTokenResponse:
        """A token; its text is told once."""
        made = tokens.create_token(
            self.deps,
            self.ctx(context),
            uses=int(request.uses) or 1,
            ttl_s=request.ttl_s or DEFAULT_TTL_S,
            hardware_id=request.hardware_id,
            pending=request.pending,
            labels=dict(request.labels),
        )
        return fleet_pb2.CreateTokenResponse(token=made.text, info=_token(made.info))

    def ListTokens(
        self, request: fleet_pb2.ListTokensRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.ListTokensResponse:
        """All tokens, without their secrets."""
        views = tokens.list_tokens(self.deps, self.ctx(context))
        return fleet_pb2.ListTokensResponse(tokens=[_token(view) for view in views])

    def RevokeToken(
        self, request: fleet_pb2.RevokeTokenRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.Token:
        """No enrolment with it from now on."""
        return _token(tokens.revoke_token(self.deps, self.ctx(context), request.token_id))


def _token(view: TokenView) -> fleet_pb2.Token:
    return fleet_pb2.Token(
        token_id=view.token_id,
        uses=view.uses,
        used=view.used,
        expires_at=time_to_wire(view.expires_at),
        created_by=view.created_by,
        revoked=view.revoked,
        pending=view.pending,
        hardware_id=view.hardware_id or "",
    )
